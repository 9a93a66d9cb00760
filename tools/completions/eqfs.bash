# SPDX-License-Identifier: Apache-2.0
# Completion of eqfs for bash.
_eqfs() {
	local cur=${COMP_WORDS[COMP_CWORD]} i=$COMP_CWORD option=''
	local options='bits= lambda= format=fp8 format=int8 include= exclude=
		settle= drain= setuid= cache= hot= threads= gpu= gpu-mem= ro allow_other default_permissions'
	COMPREPLY=()
	# The shell cuts words at the sign; find out whether -o began this one.
	while ((i > 1)); do
		case ${COMP_WORDS[i - 1]} in
		-o) option=yes; break ;;
		= | *=) ((i--)) ;;
		*) [[ ${COMP_WORDS[i]} == = ]] || break; ((i--)) ;;
		esac
	done
	if [[ $option ]]; then
		# A value is the user's; after a comma the next option begins.
		[[ $cur == = || ${COMP_WORDS[COMP_CWORD - 1]} == = && $cur != *,* ]] && return
		local before=''
		[[ $cur == *,* ]] && before=${cur%,*},
		mapfile -t COMPREPLY < <(compgen -P "$before" -W "$options" -- "${cur##*,}")
		compopt -o nospace
	elif [[ $cur == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W '-f -d -v -q -h -V -o --help --version
			--verbose --quiet' -- "$cur")
	else
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -d -- "$cur")
	fi
}
complete -F _eqfs eqfs
