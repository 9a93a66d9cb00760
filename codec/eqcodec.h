/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The codec's public interface: the one header that fs/ and tools/ include.
 *
 * Results are 0 or negative: a negative errno, or one of EQ_E*. Where a
 * function takes `struct eq_error *err` (may be NULL) a failure also leaves one
 * line there that names the file and the cause. On failure `*out` is NULL.
 * Unless said otherwise, functions may be called from any thread, and objects
 * may be shared by threads only where that is said.
 */
#ifndef EQ_CODEC_H
#define EQ_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- errors ------------------------------------------------------------ */

#define EQ_ECORRUPT (-7001)     /* bytes contradict the format or a checksum */
#define EQ_EUNSUP (-7002)       /* a version, flag or codec we do not know */
#define EQ_ELIMIT (-7003)       /* a stated limit is exceeded */
#define EQ_ENOTEQAR (-7004)     /* not an archive at all (magic) */
#define EQ_ENOTST (-7005)       /* not a safetensors file */
#define EQ_EDIFFER (-7006)      /* comparison found a difference */
#define EQ_EHOLES (-7007)       /* hardly any of the file is more than a hole */

struct eq_error {
	char text[512];
};

/* Format one line into err (when not NULL, control characters replaced by
 * '?', over-long text cut) and return rc. */
int eq_fail(struct eq_error *err, int rc, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* A static English phrase for any result. */
const char *eq_strerror(int rc);

/* ---- data types ---------------------------------------------------------- */

/* Values are those of the archive (eqar.5). */
enum eq_dtype {
	EQ_BOOL, EQ_F4, EQ_F6_E2M3, EQ_F6_E3M2, EQ_U8, EQ_I8, EQ_F8_E5M2,
	EQ_F8_E4M3, EQ_F8_E8M0, EQ_F8_E4M3FNUZ, EQ_F8_E5M2FNUZ, EQ_I16, EQ_U16,
	EQ_F16, EQ_BF16, EQ_I32, EQ_U32, EQ_F32, EQ_C64, EQ_F64, EQ_I64, EQ_U64,
	EQ_DTYPES
};

/* Name as in the safetensors header; NULL when out of range. */
const char *eq_dtype_name(int dtype);
/* The dtype of a name (not NUL-terminated), or -1. */
int eq_dtype_parse(const char *name, size_t len);
/* Size of an element in bits (4, 6, 8, ... 64); 0 when out of range. */
unsigned eq_dtype_bits(int dtype);
/* Bytes of a coded unit: the element's size, 1 for sub-byte types, 4 for C64. */
unsigned eq_dtype_unit(int dtype);

/* ---- safetensors header -------------------------------------------------- */

struct eq_st_tensor {
	const char *name;       /* UTF-8, NUL-terminated; may hold NULs inside */
	uint32_t name_len;
	uint8_t dtype, ndim;
	const uint64_t *dims;
	uint64_t begin, end;    /* bytes, counted from the end of the prefix */
};

struct eq_st {
	uint64_t prefix_len;    /* 8 + length of the JSON */
	uint64_t file_size;
	size_t n_tensors;
	struct eq_st_tensor *tensors;   /* sorted by (begin, end, name) */
	void *arena;            /* owns names and dims */
};

/*
 * Parse and validate a prefix (8-byte length and JSON) of prefix_len bytes that
 * belongs to a file of file_size bytes. Accepts and rejects what the reference
 * implementation does (safetensors/src/tensor.rs), and also rejects more than
 * EQ_MAX_DIMS dimensions and the like with EQ_ELIMIT.
 * `name` is used in messages only. Errors: EQ_ENOTST, EQ_ELIMIT, -ENOMEM.
 */
int eq_st_parse(const void *prefix, uint64_t prefix_len, uint64_t file_size,
		const char *name, struct eq_st **out, struct eq_error *err);

/*
 * Read the prefix from fd (by pread, file position untouched) and parse it.
 * *prefix gets the malloc'ed bytes (may be NULL if not wanted). The size is
 * checked against the file before it is allocated.
 * Errors: those of eq_st_parse, and what pread and fstat give.
 */
int eq_st_read(int fd, const char *name, struct eq_st **out, uint8_t **prefix,
	       struct eq_error *err);
void eq_st_free(struct eq_st *st);

/* ---- policy -------------------------------------------------------------- */

enum eq_qformat { EQ_Q_NONE = 0, EQ_Q_FP8 = 1, EQ_Q_INT8 = 2 };

/*
 * What to do with a file. Lossless unless bits or lambda is set. Zero-initialise
 * with eq_policy_init, release with eq_policy_fini. Not shared while modified.
 */
struct eq_policy {
	double bits;            /* target bits per quantised parameter, or 0 */
	double lambda;          /* EntQuant's lambda, or 0 */
	enum eq_qformat format; /* EQ_Q_FP8 unless set */
	char **include;         /* globs on tensor names (fnmatch), NULL-ended */
	char **exclude;
};

void eq_policy_init(struct eq_policy *p);
void eq_policy_fini(struct eq_policy *p);
int eq_policy_copy(struct eq_policy *dst, const struct eq_policy *src);
/*
 * Set one option: bits (0.5 to 8; 0 or "lossless" for none), lambda (> 0),
 * format (fp8 | int8), include, exclude (each call adds one or more globs,
 * separated by ':'). bits and lambda replace each other: the later one counts.
 * The first include/exclude after eq_policy_copy adds to what was copied.
 * Errors: -EINVAL with a message that names key and value; -ENOENT for an
 * unknown key; -ENOMEM.
 */
int eq_policy_set(struct eq_policy *p, const char *key, const char *value,
		  struct eq_error *err);
/*
 * Read "[policy]" of an ini file (UTF-8, at most 64 KiB, '#' and ';' comments)
 * from fd. Unknown keys and sections are errors: a misspelt policy must not
 * silently become another one. Message: "NAME:LINE: cause".
 */
int eq_policy_read(struct eq_policy *p, int fd, const char *name,
		   struct eq_error *err);
bool eq_policy_lossy(const struct eq_policy *p);
/* "lossless" or "bits=4 format=fp8 exclude=..."; malloc'ed. */
char *eq_policy_text(const struct eq_policy *p);
/*
 * Does the policy ask for this tensor to be quantised? By name, dtype (BF16,
 * F16, F32) and shape only; the encoder still stores it losslessly when it
 * holds NaN or infinity or when that is not larger.
 */
bool eq_policy_selects(const struct eq_policy *p, const struct eq_st_tensor *t);

/* ---- threads and back end ----------------------------------------------- */

struct eq_pool;
/* n workers beside the callers; 0 = one fewer than the CPUs we may use (so 0
 * workers on one CPU, which is fine). *out is NULL on -ENOMEM / -EAGAIN. */
int eq_pool_create(unsigned n, struct eq_pool **out);
void eq_pool_free(struct eq_pool *pool); /* NULL is fine; no call may be active */
/* CPUs this process may run on, >= 1. */
unsigned eq_cpu_count(void);
/*
 * Call fn(arg, i) once for each i in [0, n), on the workers and the calling
 * thread, and return when all are done. Any number of threads may call at the
 * same time; calls may nest. pool may be NULL: all on the calling thread.
 */
void eq_pool_for(struct eq_pool *pool, size_t n, void (*fn)(void *arg, size_t i),
		 void *arg);

struct eq_backend; /* backend.h */
struct eq_decode_job;
/* The CPU's decoder; never fails, static. See backend.h for the table. */
const struct eq_backend *eq_backend_cpu(void);
/* What is at work now: "cpu/avx2", "cuda/0 CARD"; static or of the back end. That of a device
 * that has failed is the CPU's. */
const char *eq_backend_name(const struct eq_backend *be);
/* Instruction set in use: "avx512", "avx2", "neon" or "c". */
const char *eq_cpu_isa(void);
/* Chunks of a tensor that its decoder is fastest with when it gets them together. */
unsigned eq_cpu_streams(void);

/* ---- times ---------------------------------------------------------------- */

/* Less than 0, 0 or more, as a is before b, the same, or after it. */
static inline int eq_time_compare(const struct timespec *a, const struct timespec *b)
{
	if (a->tv_sec != b->tv_sec)
		return a->tv_sec < b->tv_sec ? -1 : 1;
	return (a->tv_nsec > b->tv_nsec) - (a->tv_nsec < b->tv_nsec);
}

/* ---- archives: reading --------------------------------------------------- */

struct eq_archive; /* shared by threads freely once open */

struct eq_file_info {
	uint64_t size;          /* logical, bytes */
	uint64_t stored;        /* of the archive, bytes */
	uint64_t prefix_len;
	int64_t mtime_s;
	uint32_t mtime_ns;
	bool lossy;
	enum eq_qformat qformat;
	uint8_t sha256[32];     /* of the original file */
	double lambda, bits;
	uint64_t quant_params, quant_bytes;
	double relative_l1, snr_db;
	uint32_t encoder;
	const char *provenance; /* text, "" if none */
	size_t n_tensors;
};

struct eq_tensor_info {
	const char *name;       /* NUL-terminated */
	uint32_t name_len;
	char codec[9];
	uint8_t dtype, ndim;
	const uint64_t *dims;
	uint64_t begin;         /* first byte in the logical file */
	uint64_t n_bytes;       /* decoded */
	uint64_t stored;        /* payload and record, bytes */
	uint64_t params;        /* elements */
	bool lossy, nonfinite;
	double relative_l1, snr_db;
	uint32_t n_chunks;
	uint64_t chunk_bytes;   /* decoded bytes of a full chunk; 0 if no chunks */
};

/*
 * Open and validate an archive: header, trailer, index, every record. Nothing
 * is decoded. Takes fd over on success (closed by eq_archive_close), leaves it
 * to the caller on failure. `name` is copied, for messages.
 * Errors: EQ_ENOTEQAR, EQ_ECORRUPT, EQ_EUNSUP, EQ_ELIMIT, -ENOMEM, -errno.
 */
int eq_archive_open(int fd, const char *name, struct eq_archive **out,
		    struct eq_error *err);
void eq_archive_close(struct eq_archive *a);
/*
 * The logical size alone, for sums over many archives: two small reads, and no
 * check of the index. Takes nothing over. 0, or an error as above, without a message.
 */
int eq_archive_peek(int fd, uint64_t *size);
const struct eq_file_info *eq_archive_info(const struct eq_archive *a);
/* Its time of modification, or the one that somebody has set instead (eq_mtime_get). */
void eq_archive_mtime(const struct eq_archive *a, struct timespec *out);
/* The tensors in the order of the file; owned by the archive. */
const struct eq_tensor_info *eq_archive_tensors(const struct eq_archive *a);
/* The original file's prefix, info->prefix_len bytes; owned by the archive. */
const uint8_t *eq_archive_prefix(const struct eq_archive *a);

/* The part of the logical file that one decoding step yields. */
struct eq_extent {
	uint64_t begin, len;    /* bytes of the logical file */
	int64_t tensor;         /* index, or -1: prefix */
	uint32_t chunk;         /* index in the tensor; const tensors: slices */
};

/* The extent that holds byte off; -EINVAL at or beyond the end. O(log n). */
int eq_archive_locate(const struct eq_archive *a, uint64_t off,
		      struct eq_extent *out);

struct eq_extent_job {
	struct eq_extent ext;
	void *out;              /* ext.len bytes, 64-byte aligned is fastest */
	int status;             /* out: 0 or an error */
};

/*
 * Read, check and decode n extents, on the calling thread (and the device of
 * the back end); several at once are faster than one by one. Each job gets its
 * own status, and its message goes to err (the last failing one wins). A failed
 * job's buffer holds nothing useful. Returns 0 or the first failing status.
 * Errors: EQ_ECORRUPT (message names archive, tensor and chunk), -EIO, -ENOMEM.
 */
int eq_archive_decode(struct eq_archive *a, const struct eq_backend *be,
		      struct eq_extent_job *jobs, size_t n,
		      struct eq_error *err);

/*
 * The same in steps, for those who decode elsewhere. Stored bytes of an extent,
 * 0 if it needs none (prefix, const tensors); and the room that it may take in
 * the buffer of a fetch.
 */
size_t eq_archive_stored(const struct eq_archive *a, const struct eq_extent *e);
size_t eq_archive_fetch_room(const struct eq_archive *a, const struct eq_extent *e);
/*
 * Read the stored bytes of n extents, all of which have some, to buf (64-byte
 * aligned, with room for them all) and check their sums. Those that are sound are
 * jobs for a back end, out[0..result), with the extents which[0..result); the
 * others have their status, and a message in err. Plans belong to the archive.
 */
size_t eq_archive_fetch(struct eq_archive *a, struct eq_extent_job *jobs, size_t n,
			uint8_t *buf, struct eq_decode_job *out, uint32_t *which,
			struct eq_error *err);
/* Note what a back end said of an extent, once, with the message if it is no good. The
 * job's plan is not to be used any more; that of a job without a verdict is kept until
 * the archive is closed. */
int eq_archive_verdict(struct eq_archive *a, struct eq_extent_job *j, int status,
		       struct eq_error *err);

/*
 * Bytes [off, off + len) of the logical file, decoded without any cache.
 * Returns the number of bytes (short only at the end of the file), or an error.
 */
ssize_t eq_archive_pread(struct eq_archive *a, const struct eq_backend *be,
			 void *buf, size_t len, uint64_t off,
			 struct eq_error *err);

/* ---- progress ------------------------------------------------------------ */

/* Called now and then, from one thread at a time; nonzero cancels the work,
 * which then fails with -ECANCELED. what: "encode", "verify", ... */
typedef int (*eq_progress_fn)(void *arg, const char *what, uint64_t done,
			      uint64_t total);

struct eq_run {                 /* how to run a long operation */
	struct eq_pool *pool;           /* NULL: the calling thread only */
	const struct eq_backend *backend; /* NULL: eq_backend_cpu() */
	bool direct;                    /* a large output goes past the page cache, if it can */
	eq_progress_fn progress;        /* may be NULL */
	void *progress_arg;
};

/*
 * Decode everything and check it: chunk checksums, content hash of each tensor,
 * SHA-256 of a lossless file, the stored header against the records.
 * against_fd >= 0: also compare with that file, bit for bit where the archive
 * is lossless, and where it is lossy that the error is what the archive says.
 * Errors: EQ_ECORRUPT, EQ_EDIFFER, -ECANCELED, -errno. With report, called for
 * each damaged chunk (several may be) and verification goes on to the end.
 */
struct eq_compare {             /* filled when against_fd >= 0 */
	bool identical;
	double relative_l1, snr_db; /* over the quantised tensors */
};
int eq_archive_verify(struct eq_archive *a, int against_fd,
		      const char *against_name, const struct eq_run *run,
		      struct eq_compare *cmp,
		      void (*report)(void *arg, const char *line), void *report_arg,
		      struct eq_error *err);

/* Write the logical file to out_fd from offset 0 (ftruncate first, then in
 * order). Does not sync. Bounded memory. */
int eq_archive_unpack(struct eq_archive *a, int out_fd, const struct eq_run *run,
		      struct eq_error *err);
/* Does fd hold, byte for byte, what that writes? Does not hash the whole once more. 0, or
 * as eq_archive_verify. */
int eq_archive_match(struct eq_archive *a, int fd, const char *name, const struct eq_run *run,
		     struct eq_error *err);

/* ---- archives: writing --------------------------------------------------- */

struct eq_summary {
	uint64_t size, stored;
	size_t n_tensors, n_quantised;
	uint64_t quant_params, quant_bytes;
	double lambda, relative_l1, snr_db;
};

/*
 * Encode the safetensors file in_fd into out_fd (empty, read-write), one pass
 * over the output. Neither descriptor is closed, positions are untouched, the
 * output is not synced. Memory: a quantised tensor at a time, and some blocks.
 * If the input changes size while it is read the result is -EBUSY.
 * Errors: EQ_ENOTST, EQ_ELIMIT, -EBUSY, -ECANCELED, -ENOSPC, -errno.
 */
int eq_encode(int in_fd, const char *in_name, int out_fd,
	      const struct eq_policy *policy, const struct eq_run *run,
	      struct eq_summary *out, struct eq_error *err);

/*
 * Sizes that eq_encode would give, estimated from a sample of each tensor.
 * Writes nothing.
 */
int eq_estimate(int in_fd, const char *in_name, const struct eq_policy *policy,
		const struct eq_run *run, struct eq_summary *out,
		struct eq_error *err);

/*
 * Is fd, of this size and blocks, a safetensors file and hardly anything but holes, more
 * than a GiB of them? No archive gains anything then, and making one could take for ever.
 * Where the blocks say so, which some filesystems count late, it looks for them. 0,
 * EQ_EHOLES, -ECANCELED, or of such a file as eq_st_read.
 */
int eq_check_holes(int fd, const char *name, const struct stat *st, const struct eq_run *run,
		   struct eq_error *err);

/* Open an entry of dirfd, never a link's target or what a path leads to. The
 * descriptor, or -errno. */
int eq_open_in(int dirfd, const char *name, int flags);
/* The same for reading a regular file, which is all that is opened: -ELOOP for a
 * symbolic link, -EINVAL for anything else. *st is the file's. */
int eq_open_regular(int dirfd, const char *name, struct stat *st);

/* Names of temporary files: ".eqfs-tmp.XXXXXXXXXXXXXXXX" (16 hex digits). */
#define EQ_TMP_NAME_SIZE 28
bool eq_tmp_is(const char *name);
/* Create one in dirfd (O_EXCL, O_RDWR, mode 0600). The creator holds an flock on
 * it, so that a later clean-up can tell litter from work in progress. */
int eq_tmp_create(int dirfd, char name[EQ_TMP_NAME_SIZE], int *fd);
/*
 * Move a file, of whatever type, into a directory of a temporary name, for a moment in
 * which its own is wanted for an archive. If a crash comes before it is dropped, and
 * nothing has its name, the next sweep puts it back. 0 or -errno: then it is where it
 * was. Begin is followed by one of the others, which leaves to the next sweep what it
 * cannot do. dirfd and name are the caller's until then.
 */
struct eq_aside {
	int dirfd, fd;
	const char *name;
	char tmp[EQ_TMP_NAME_SIZE];
};
int eq_aside_begin(struct eq_aside *a, int dirfd, const char *name);
int eq_aside_back(struct eq_aside *a);
int eq_aside_drop(struct eq_aside *a);
/* Remove name if it is a temporary file that nobody holds: 0. 1: a file was aside in it,
 * and is back under its own name. Or -errno; -EBUSY if it is in use. */
int eq_tmp_sweep(int dirfd, const char *name);
/* Give `to` the access control list and the user.* attributes of a file, and no others; those
 * of eqfs itself (user.eqfs.*) are left alone. from may be an O_PATH descriptor. Best effort. */
void eq_xattrs_copy(int from, int to);
/*
 * The time of modification in an archive is that of its original. Whoever sets another one
 * finds it in this attribute of the archive, whose descriptor may be from O_PATH. False if
 * there is none; 0 or -errno.
 */
#define EQ_XATTR_MTIME "user.eqfs.mtime"
bool eq_mtime_get(int fd, struct timespec *out);
int eq_mtime_set(int fd, const struct timespec *t);
/* fsync fd, rename tmp to final in dirfd (-EEXIST if that is there and not to be
 * replaced), fsync dirfd. On failure tmp is still there under its name, unless only the
 * last step failed: then the file is final, and may not survive a power cut. */
int eq_publish(int dirfd, int fd, const char *tmp, const char *final, bool replace);
/* After that: give final up again, if it is fd's. */
void eq_withdraw(int dirfd, int fd, const char *final);

/*
 * Mounts and repository runs hold an flock on their directory. Does one hold a
 * directory above dirfd, so that its files are in use already? 0 or -EBUSY;
 * what cannot be opened is passed over.
 */
int eq_store_above(int dirfd);
/* Does one hold this very directory? 0 or -EBUSY. */
int eq_store_probe(int dirfd);

#define EQ_SUFFIX ".eqar"

/*
 * Replace the plain file NAME in dirfd by NAME.eqar: encode to a temporary
 * file, copy mode, owner, times and user xattrs, decode and compare with the
 * plain file, sync, rename, sync the directory, and then, if NAME is still the
 * same file (device, inode, size, mtime), remove it. Attributes that are set meanwhile are
 * carried over; where there are leases, the contents' hash tells that from a write. Nobody may have it open for
 * writing, or mapped: at the beginning and at the swap a lease shows that, upon
 * which the kernel may send SIGIO, to be ignored by the process.
 *
 * hooks and each of them may be NULL. `written` is asked where there are no leases:
 * may somebody have it mapped, or open, unseen? `enter` is called before the swap
 * with the descriptor of the plain file; 0 goes on, else the shrink is given up with
 * that result. `leave` follows each successful enter. Between the two nothing may
 * change the names.
 *
 * Errors: EQ_ENOTST (leave it plain), EQ_EHOLES (likewise), -EBUSY (it is being written, or changed meanwhile),
 * -EMLINK (it has hard links), -ENAMETOOLONG, -ENOTSUP (the archive would not
 * be smaller), those of eq_encode and eq_archive_verify. After any failure the
 * plain file is as it was and no temporary file is left.
 */
struct eq_shrink_hooks {
	bool (*written)(void *arg);
	int (*enter)(void *arg, int plain_fd);
	void (*leave)(void *arg, bool swapped);
	void *arg;
};
int eq_shrink(int dirfd, const char *name, const struct eq_policy *policy,
	      const struct eq_run *run, const struct eq_shrink_hooks *hooks,
	      struct eq_summary *out, struct eq_error *err);

#ifdef __cplusplus
}
#endif
#endif
