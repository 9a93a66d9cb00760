/* SPDX-License-Identifier: Apache-2.0 */
/* eqar: make, read and check archives of model weights. See eqar(1). */
#include "config.h"

#include "eqar.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *what;
} commands[] = {
	{ "pack", eq_cmd_pack, "encode a file, or shrink a repository" },
	{ "unpack", eq_cmd_unpack, "decode an archive, or restore a repository" },
	{ "ls", eq_cmd_ls, "list the tensors of archives" },
	{ "stat", eq_cmd_stat, "sizes, error, policy and hash of archives" },
	{ "verify", eq_cmd_verify, "check archives, or compare with an original" },
	{ "diff", eq_cmd_diff, "compare two files tensor by tensor" },
	{ "bench", eq_cmd_bench, "measure the decoding of an archive" },
	{ "du", eq_cmd_du, "logical and physical size of directories" },
	{ "status", eq_cmd_status, "what mounts of eqfs are doing" },
};

#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void help(void)
{
	puts("Usage: eqar COMMAND [OPTION]... FILE...\n"
	     "Archives of safetensors files, entropy-coded.\n");
	for (size_t i = 0; i < N_COMMANDS; i++)
		printf("  %-8s %s\n", commands[i].name, commands[i].what);
	puts("\n'eqar COMMAND --help' tells more; so does eqar(1).");
}

int main(int argc, char **argv)
{
	int status = EQ_EXIT_USAGE;
	size_t i = N_COMMANDS;

	if (argc > 1)
		for (i = 0; i < N_COMMANDS; i++)
			if (!strcmp(argv[1], commands[i].name))
				break;
	if (i < N_COMMANDS) {
		/* getopt_long begins its messages with argv[0]. */
		argv[1] = program_invocation_short_name;
		status = commands[i].run(argc - 1, argv + 1);
	} else if (argc > 1 && !strcmp(argv[1], "--help")) {
		help();
		status = EQ_EXIT_OK;
	} else if (argc > 1 && !strcmp(argv[1], "--version")) {
		puts("eqar (eqfs) " PACKAGE_VERSION);
		status = EQ_EXIT_OK;
	} else {
		if (argc > 1)
			eq_cli_error("%s: no such command", argv[1]);
		else
			eq_cli_error("missing command");
		eq_cli_usage("eqar");
	}
	status = eq_cli_finish(status);
	eq_cli_die_of_signal();
	return status;
}
