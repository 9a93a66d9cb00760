/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What eqar's commands share. A command gets its own argc and argv, argv[0]
 * being the program's name, says its errors itself and returns an exit status.
 */
#ifndef EQ_EQAR_H
#define EQ_EQAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "cli.h"
#include "eqcodec.h"

int eq_cmd_pack(int argc, char **argv);
int eq_cmd_unpack(int argc, char **argv);
int eq_cmd_ls(int argc, char **argv);
int eq_cmd_stat(int argc, char **argv);
int eq_cmd_verify(int argc, char **argv);
int eq_cmd_diff(int argc, char **argv);
int eq_cmd_bench(int argc, char **argv);
int eq_cmd_du(int argc, char **argv);
int eq_cmd_status(int argc, char **argv);

/* ---- options that most commands have (eqar_file.c) ----------------------- */

struct eq_common {
	bool quiet, verbose, json;
	unsigned jobs;          /* threads, 0: as many as CPUs */
	const char *gpu;        /* auto, off or a number; NULL: off */
};

/*
 * Handle one of the common options (-q -v -j N --gpu --json --help), as getopt_long
 * returned it. False if it is none, or not well-formed (said); then the command
 * is to return eq_cli_usage. --help prints the text and sets *done.
 */
enum { EQ_OPT_JSON = 256, EQ_OPT_HELP, EQ_OPT_GPU, EQ_OPT_OWN };
bool eq_common_option(struct eq_common *c, int opt, const char *arg,
		      const char *help, bool *done);

/* ---- running the codec (eqar_file.c) ------------------------------------- */

struct eq_runner {
	struct eq_run run;
	struct eq_cli_progress progress;
};

/* Threads, progress and back end by the options. 0, or a negative errno (said). */
int eq_runner_init(struct eq_runner *r, const struct eq_common *c);
void eq_runner_fini(struct eq_runner *r);
/* Take the progress line away and say err, or the phrase for rc. */
void eq_runner_error(struct eq_runner *r, const char *path, int rc,
		     const struct eq_error *err);

/* ---- files (eqar_file.c) ------------------------------------------------- */

/* Open a regular file for reading: name in dirfd, called path in messages. The
 * descriptor, or a negative errno with a message in err. */
int eq_input_open(int dirfd, const char *name, const char *path,
		  struct stat *st, struct eq_error *err);

/* The same for an archive. NULL on failure. */
struct eq_archive *eq_input_archive(int dirfd, const char *name,
				    const char *path, struct stat *st,
				    struct eq_error *err);

/*
 * A file being written: a temporary one in the directory of its final path.
 * eq_output_commit gives it owner, mode and times, syncs and renames it;
 * eq_output_abort removes it. All of them say what fails, and return 0 or a
 * negative errno. After begin has succeeded one of the other two must follow.
 */
struct eq_output {
	const char *path;       /* borrowed, for messages */
	const char *base;       /* the last component, within path */
	char tmp[EQ_TMP_NAME_SIZE];
	int dirfd, fd;
	bool own_dirfd, overwrite;
};

/* dirfd -1: path is opened as it stands; else base is path's name in dirfd. Without
 * `overwrite` nothing of that name is replaced, be it new at the commit. */
int eq_output_begin(struct eq_output *o, int dirfd, const char *path,
		    bool overwrite);
/* 0, or -EINVAL (said) if the path out is the input, of which st is. */
int eq_output_distinct(const char *out, const struct stat *st);
int eq_output_commit(struct eq_output *o, const struct stat *owner_and_mode,
		     const struct timespec times[2]);
/* The attributes alone, without a word. */
int eq_output_attributes(int fd, const struct stat *owner_and_mode,
			 const struct timespec times[2]);
void eq_output_abort(struct eq_output *o);

/*
 * Decode [off, off + len) of the logical file, in parallel; len is cut at a
 * boundary of extents, so *got may be smaller, but is not 0 unless off is the
 * end of the file. buf holds max bytes, and max must be at least the largest
 * extent (eq_decode_max).
 */
int eq_decode_range(struct eq_archive *a, const struct eq_run *run,
		    uint64_t off, void *buf, size_t max, size_t *got,
		    struct eq_error *err);
/* The largest extent of the archive, or a negative error. */
int64_t eq_decode_max(const struct eq_archive *a);

/* ---- directory trees (eqar_walk.c) --------------------------------------- */

struct eq_visit {
	int dirfd;
	const char *name, *path;
	const struct stat *st;
};

/*
 * Call fn for every regular file under path, and with `own` for what has a temporary
 * name, of any type, sorted by name, not following symbolic links and staying on one
 * file system. Names are collected before a directory's first call, so fn may add and
 * remove files. Stops when fn returns other than 0, and returns that. leave (may be NULL) is called when a directory is
 * done with, after those in it. Directories that cannot be read, and with `own`
 * those that a mount or another eqar holds, are said and set *failed.
 */
int eq_walk(const char *path, bool own, int (*fn)(void *arg, const struct eq_visit *v),
	    void (*leave)(void *arg, const char *path), void *arg, bool *failed);

/* ---- packing (eqar_pack.c) ----------------------------------------------- */

struct eq_setting {             /* a policy option as it was given */
	const char *key, *value;
};

struct eq_pack {
	struct eq_common common;
	bool force, dry_run;
	const char *policy_file;        /* or NULL */
	const struct eq_setting *settings;
	size_t n_settings;
};

/*
 * The policy: --policy FILE, else .eqfs.conf in dirfd (-1: none), then the
 * options on top. Initialises *out; 0 or a negative errno, said.
 */
int eq_pack_policy(const struct eq_pack *p, int dirfd, const char *dir,
		   struct eq_policy *out);
/* Say what became of a file, as far as -n, -v and --json ask for it, and when it could
 * not be what the policy asks for. */
void eq_pack_report(const struct eq_pack *p, struct eq_runner *r, const char *in,
		    const struct eq_policy *policy, const struct eq_summary *s);

/* The same for what unpack has written to out (eqar_unpack.c). */
void eq_unpack_report(const struct eq_common *c, struct eq_runner *r,
		      const char *out, const struct eq_file_info *info);

/* ---- whole repositories in place (eqar_repo.c) --------------------------- */

/* Both return an exit status. */
int eq_repo_pack(const struct eq_pack *p, struct eq_runner *r, const char *dir);
int eq_repo_unpack(const struct eq_common *c, bool force, struct eq_runner *r,
		   const char *dir);

/* Does name end in suffix, and have something before it? */
bool eq_name_ends(const char *name, const char *suffix);

/* ---- rows for JSON and people (eqar_list.c) ------------------------------ */

/* Bits a parameter, NaN when there are none. */
double eq_bits_each(uint64_t bytes, uint64_t params);

#endif
