# SPDX-License-Identifier: Apache-2.0
# Completion of eqar for bash.
_eqar_archives() {
	local f
	compopt -o filenames
	while IFS= read -r f; do
		[[ -d $f || $f == *.eqar ]] && COMPREPLY+=("$f")
	done < <(compgen -f -- "$1")
}

_eqar() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
	local command=${COMP_WORDS[1]} words='' directories=''
	COMPREPLY=()
	# The shell cuts --option=value at the sign.
	if [[ $cur == = ]]; then
		cur=
	elif [[ $prev == = ]]; then
		prev=${COMP_WORDS[COMP_CWORD - 2]}
	fi
	if ((COMP_CWORD == 1)); then
		mapfile -t COMPREPLY < <(compgen -W \
			'pack unpack ls stat verify diff bench du status --help --version' -- "$cur")
		return
	fi
	case $prev in
	--format)
		mapfile -t COMPREPLY < <(compgen -W 'fp8 int8' -- "$cur")
		return ;;
	--policy | --against)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return ;;
	--bits | --lambda | --include | --exclude | --jobs | -j | --interval | -i)
		return ;;
	esac
	case $command in
	pack) words='--recursive --dry-run --force --bits= --lambda= --format=
		--include= --exclude= --policy= --jobs= --gpu= --quiet --verbose --json --help' ;;
	unpack) words='--recursive --stdout --force --jobs= --gpu= --quiet --verbose --json --help' ;;
	ls) words='--long --json --help' ;;
	stat) words='--json --help' ;;
	verify) words='--recursive --against= --jobs= --gpu= --quiet --json --help' ;;
	diff) words='--jobs= --quiet --verbose --json --help' ;;
	bench) words='--jobs= --gpu= --json --help' ;;
	du) words='--human-readable --summarize --json --help' directories=yes ;;
	status) words='--interval= --quiet --verbose --json --help' directories=yes ;;
	esac
	if [[ $cur == -* ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
		[[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
		return
	fi
	[[ " ${COMP_WORDS[*]} " =~ \ (-[a-z]*r[a-z]*|--recursive)\  ]] && directories=yes
	if [[ $directories ]]; then
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -d -- "$cur")
	elif [[ $command == pack || $command == diff ]]; then
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
	else
		_eqar_archives "$cur"
	fi
}
complete -F _eqar eqar
