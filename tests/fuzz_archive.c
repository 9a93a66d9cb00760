/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target for archives: opening, random access and verification of any
 * bytes. The part of the codec that opens and reads is built to pass over
 * checksums here (eq_checksum_ok), in `make check` as well.
 *
 * An input is a struct eq_fuzz_head and the archive; a file *.eqar is taken as
 * it is. Without libFuzzer this program replays the files given, or the corpus
 * and the fixtures if none are given.
 */
#include <config.h>

#include <sys/mman.h>
#include <unistd.h>

#include "codec_util.h"
#include "eqcodec.h"
#include "format.h"
#include "fuzz_util.h"

struct eq_fuzz_head {
	uint32_t seed;          /* of the ranges that are read */
	uint8_t gap;            /* not 0: GAP zeros belong behind the file header */
	uint8_t zero[3];
};
static_assert(sizeof(struct eq_fuzz_head) == 8, "head");

#define HEADER sizeof(struct eq_disk_header)
#define TRAILER sizeof(struct eq_disk_trailer)
#define GAP (EQ_PAYLOAD_ALIGN - HEADER)
#define WHOLE_MAX (UINT64_C(1) << 18)   /* files up to this size are decoded whole */
#define READ_MAX 65536u
#define READS 8

/* What decoding extent by extent gives. */
struct whole {
	uint8_t *bytes, *sound; /* sound[i]: bytes[i] could be decoded */
	size_t n_bad;           /* extents that could not */
};

static void demand_text(const struct eq_error *err)
{
	demand_message(err->text, sizeof(err->text));
}

static int write_archive(const struct eq_fuzz_head *h, const uint8_t *data, size_t size)
{
	const size_t first = h->gap && size > HEADER ? HEADER : size;
	const int fd = memfd_create("fuzz", MFD_CLOEXEC);

	demand(fd >= 0, "memory");
	demand(pwrite(fd, data, first, 0) == (ssize_t)first, "memory");
	size -= first;
	demand(pwrite(fd, data + first, size, (off_t)(HEADER + GAP)) == (ssize_t)size, "memory");
	return fd;
}

/* ---- what an open archive must be like ------------------------------------------ */

static void check_tensors(const struct eq_archive *a)
{
	const struct eq_file_info *info = eq_archive_info(a);
	const struct eq_tensor_info *t = eq_archive_tensors(a);
	uint64_t at = info->prefix_len;

	demand(strlen(info->provenance) < info->stored, "provenance");
	for (size_t i = 0; i < info->n_tensors; i++, t++) {
		demand(t->begin == at, "tensors tile the file");
		demand(t->n_bytes <= info->size - at, "tensors end with the file");
		demand(t->name[t->name_len] == '\0', "terminator");
		demand(!t->n_chunks || t->n_chunks == (t->n_bytes + t->chunk_bytes - 1) /
							      t->chunk_bytes, "chunks");
		at += t->n_bytes;
	}
	demand(at == info->size, "end of the file");
}

static void locate(const struct eq_archive *a, uint64_t off, struct eq_extent *e)
{
	const struct eq_file_info *info = eq_archive_info(a);
	struct eq_extent again;

	demand(eq_archive_locate(a, off, e) == 0, "locate");
	demand(e->begin <= off && off - e->begin < e->len, "extent holds the byte");
	demand(e->len <= EQ_MAX_CHUNK_BYTES && e->len <= info->size - e->begin,
	       "length of an extent");
	demand(e->tensor >= -1 && e->tensor < (int64_t)info->n_tensors, "tensor of an extent");
	demand(eq_archive_locate(a, e->begin + e->len - 1, &again) == 0 &&
	       again.begin == e->begin && again.tensor == e->tensor &&
	       again.chunk == e->chunk, "extent from its end");
}

static void decode_whole(struct eq_archive *a, struct whole *w)
{
	const uint64_t size = eq_archive_info(a)->size;
	struct eq_extent_job job;

	*w = (struct whole){ malloc(size), calloc(1, size), 0 };
	demand(w->bytes && w->sound, "memory");
	for (uint64_t at = 0; at < size; at += job.ext.len) {
		struct eq_error err = { "" };
		int rc;

		locate(a, at, &job.ext);
		demand(job.ext.begin == at, "extents tile the file");
		job.out = malloc(job.ext.len);
		job.status = 1;
		demand(job.out != NULL, "memory");
		rc = eq_archive_decode(a, NULL, &job, 1, &err);
		demand(rc == job.status && (rc == 0 || rc == EQ_ECORRUPT), "result of decode");
		if (rc) {
			demand_text(&err);
			w->n_bad++;
		} else {
			memcpy(w->bytes + at, job.out, job.ext.len);
			memset(w->sound + at, 1, job.ext.len);
		}
		free(job.out);
	}
}

/* ---- reading ---------------------------------------------------------------------- */

static void read_range(struct eq_archive *a, const struct whole *w, uint64_t off, size_t len)
{
	const uint64_t size = eq_archive_info(a)->size;
	const uint64_t left = off < size ? size - off : 0;
	const size_t want = left < len ? (size_t)left : len;
	uint8_t *buf = malloc(len ? len : 1);
	struct eq_error err = { "" };
	ssize_t n;

	demand(buf != NULL, "memory");
	n = eq_archive_pread(a, NULL, buf, len, off, &err);
	demand(n == (ssize_t)want || n == EQ_ECORRUPT, "result of pread");
	if (n < 0)
		demand_text(&err);
	if (w->bytes && want) {
		const bool sound = !memchr(w->sound + off, 0, want);

		demand(sound == (n >= 0), "a range is readable when its extents are");
		demand(!sound || !memcmp(buf, w->bytes + off, want), "bytes of pread");
	}
	free(buf);
}

static void read_ranges(struct eq_archive *a, const struct whole *w, uint64_t seed)
{
	const uint64_t size = eq_archive_info(a)->size;
	struct eq_extent e;

	for (unsigned i = 0; i < READS; i++) {
		uint64_t off = rnd(&seed) % (size + 2);
		size_t len = rnd(&seed) % (READ_MAX >> rnd(&seed) % 12);

		if (off < size) {
			locate(a, off, &e);
			if (i & 1) /* just before or at where an extent begins */
				off = e.begin - (e.begin ? rnd(&seed) % 2 : 0);
		}
		read_range(a, w, off, len);
	}
	read_range(a, w, size - 1, 2);
	read_range(a, w, UINT64_MAX, 1);
}

static void count_line(void *arg, const char *line)
{
	demand(strncmp(line, "F: ", 3) == 0, "line of a report");
	++*(size_t *)arg;
}

static void verify(struct eq_archive *a, const struct whole *w)
{
	const struct eq_run run = { 0 };
	struct eq_error err = { "" };
	size_t lines = 0;
	int rc = eq_archive_verify(a, -1, NULL, &run, NULL, count_line, &lines, &err);

	demand(rc == 0 || rc == EQ_ECORRUPT, "result of verify");
	demand(!w->n_bad || rc, "damage is found");
	demand(rc || !lines, "damage is told");
	if (rc)
		demand_text(&err);
}

static void check_archive(const struct eq_fuzz_head *h, const uint8_t *data, size_t size)
{
	const int fd = write_archive(h, data, size);
	struct whole w = { NULL, NULL, 0 };
	struct eq_error err = { "" };
	struct eq_archive *a;
	int rc;

	rc = eq_archive_open(fd, "F", &a, &err);
	if (rc) {
		demand(rc == EQ_ENOTEQAR || rc == EQ_ECORRUPT || rc == EQ_EUNSUP || rc == EQ_ELIMIT,
		       "result of open");
		demand(a == NULL, "no object on failure");
		demand_text(&err);
		close(fd);
		return;
	}
	check_tensors(a);
	if (eq_archive_info(a)->size <= WHOLE_MAX) {
		decode_whole(a, &w);
		if (h->seed % 8 == 0)
			verify(a, &w);
	}
	read_ranges(a, &w, h->seed);
	eq_archive_close(a);
	free(w.bytes);
	free(w.sound);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct eq_fuzz_head h;

	if (size < sizeof(h))
		return 0;
	memcpy(&h, data, sizeof(h));
	check_archive(&h, data + sizeof(h), size - sizeof(h));
	return 0;
}

#ifdef EQ_LIBFUZZER

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

/* Let the trailer's lengths follow what was put in or taken out, now of the
 * payload, now of the index: else hardly any such change would be opened. */
static void mend_trailer(uint8_t *data, size_t size, bool index)
{
	struct eq_disk_trailer t;
	struct eq_fuzz_head h;

	memcpy(&h, data, sizeof(h));
	memcpy(&t, data + size - sizeof(t), sizeof(t));
	t.archive_len = size - sizeof(h) + (h.gap ? GAP : 0);
	if (index)
		t.index_len = t.archive_len - sizeof(t) - t.index_off;
	else
		t.index_off = t.archive_len - sizeof(t) - t.index_len;
	memcpy(data + size - sizeof(t), &t, sizeof(t));
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	uint64_t s = seed;

	if (rnd(&s) & 1 && size) { /* a few bytes where they are */
		const size_t at = rnd(&s) % size, len = 1 + rnd(&s) % 16;

		LLVMFuzzerMutate(data + at, len < size - at ? len : size - at,
				 len < size - at ? len : size - at);
		return size;
	}
	size = LLVMFuzzerMutate(data, size, max_size);
	if (rnd(&s) % 8 && size >= sizeof(struct eq_fuzz_head) + HEADER + TRAILER)
		mend_trailer(data, size, rnd(&s) & 1);
	return size;
}

#else

static int check_whole_file(const uint8_t *data, size_t size)
{
	const struct eq_fuzz_head h = { .seed = 0 };

	check_archive(&h, data, size);
	return 0;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		fuzz_replay(argv[i], fuzz_has_suffix(argv[i], ".eqar") ? check_whole_file :
									 LLVMFuzzerTestOneInput);
	if (argc > 1)
		return 0;
	return !fuzz_replay_directory("corpus/archive", "", LLVMFuzzerTestOneInput) ||
	       !fuzz_replay_directory("good", ".eqar", check_whole_file) ||
	       !fuzz_replay_directory("unsupported", ".eqar", check_whole_file) ||
	       !fuzz_replay_directory("bad", ".eqar", check_whole_file);
}

#endif
