/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A preloaded library that tells apart the places (call stacks) from which a program
 * allocates memory or starts threads, and lets that fail from one of them on.
 *
 *   EQFS_ALLOC_LOG    file to append to: a line with the name of each place when it is met
 *                     first, and with a ! before it and the stack after it when it fails
 *   EQFS_ALLOC_FAULT  PLACE:COUNT: from the first allocation at PLACE on, COUNT allocations
 *                     fail, wherever they are made; if COUNT is 0, all those at PLACE
 *
 * The name of a place is the same in each run of the same binaries. What a library
 * allocates while it does one thing for the program is one place.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEPTH 14        /* frames that tell places apart */
#define SKIP 2          /* frames of our own */
#define PLACES 65536
#define FIRST_HASH UINT64_C(0xcbf29ce484222325)

static struct {
	pthread_mutex_t lock;
	bool on;
	int log;
	uint64_t place;         /* where it begins; 0: nowhere */
	long count, left;
	void *program;          /* where it is */
	uint64_t seen[PLACES];
	struct known {
		uint64_t stack, place;
	} known[PLACES];        /* the last one of each bucket */
} fault = { .lock = PTHREAD_MUTEX_INITIALIZER, .log = -1 };

/* Whatever is allocated meanwhile is our own. */
static __thread bool inside __attribute__((tls_model("initial-exec")));

__attribute__((constructor)) static void fault_init(void)
{
	const char *log = getenv("EQFS_ALLOC_LOG"), *what = getenv("EQFS_ALLOC_FAULT");
	void *frame[1];
	Dl_info info;

	inside = true;
	if (dladdr((void *)getauxval(AT_ENTRY), &info))
		fault.program = info.dli_fbase;
	backtrace(frame, 1); /* loads the unwinder */
	if (log)
		fault.log = (int)syscall(SYS_openat, AT_FDCWD, log,
					 O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (what)
		sscanf(what, "%lx:%ld", &fault.place, &fault.count);
	fault.on = log || what;
	inside = false;
}

static void say(const char *mark, uint64_t place)
{
	char line[32];
	int n = snprintf(line, sizeof(line), "%s%016lx\n", mark, place);

	if (fault.log >= 0)
		syscall(SYS_write, fault.log, line, (size_t)n);
}

static uint64_t mix(uint64_t h, const void *p, size_t len)
{
	const unsigned char *c = p;

	while (len--)
		h = (h ^ *c++) * UINT64_C(0x100000001b3);
	return h;
}

/* Addresses count from the beginning of their library. Of frames of the program there
 * are only these, if there are any, and the library that they have called. */
static uint64_t name_place(void *const *frame, int n)
{
	uint64_t all = FIRST_HASH, ours = FIRST_HASH, off;
	const char *base, *innermost = NULL;
	Dl_info info;
	int i;

	for (i = SKIP; i < n; i++) {
		if (!dladdr(frame[i], &info) || !info.dli_fname)
			continue;
		base = strrchr(info.dli_fname, '/');
		base = base ? base + 1 : info.dli_fname;
		if (!innermost)
			innermost = base;
		off = (uint64_t)((char *)frame[i] - (char *)info.dli_fbase);
		all = mix(mix(all, base, strlen(base)), &off, sizeof(off));
		if (info.dli_fbase == fault.program)
			ours = mix(ours, &off, sizeof(off));
	}
	return ours == FIRST_HASH ? all : mix(ours, innermost, strlen(innermost));
}

/* Under the lock. A stack that was seen before need not be named again. */
static uint64_t place_of(void *const *frame, int n)
{
	uint64_t stack = mix(FIRST_HASH, frame + SKIP, (size_t)(n - SKIP) * sizeof(*frame));
	struct known *k = &fault.known[stack % PLACES];

	if (k->stack != stack)
		*k = (struct known){ stack, name_place(frame, n) };
	return k->place;
}

/* Under the lock: is it met for the first time? */
static bool first_time(uint64_t place)
{
	size_t i = place % PLACES, tries;

	for (tries = 0; fault.seen[i] && tries < PLACES; tries++) {
		if (fault.seen[i] == place)
			return false;
		i = (i + 1) % PLACES;
	}
	fault.seen[i] = place;
	return true;
}

/* Under the lock. */
static bool to_fail(uint64_t place, bool first)
{
	if (!fault.count)
		return place == fault.place;
	if (place == fault.place && first)
		fault.left = fault.count;
	if (fault.left <= 0)
		return false;
	fault.left--;
	return true;
}

/* libcrypto allocates thousands of times when it is first used: no stacks of that. */
static int stack_here(void *frame[DEPTH + SKIP], void *caller)
{
	Dl_info info;

	if (!dladdr(caller, &info) || !info.dli_fname || !strstr(info.dli_fname, "libcrypto"))
		return backtrace(frame, DEPTH + SKIP);
	frame[SKIP] = caller;
	return SKIP + 1;
}

static __attribute__((noinline)) bool fails(void *caller)
{
	int error = errno, n;
	void *frame[DEPTH + SKIP] = { NULL };
	uint64_t place;
	bool first, yes;

	if (!fault.on || inside)
		return false;
	inside = true;
	n = stack_here(frame, caller);
	pthread_mutex_lock(&fault.lock);
	place = place_of(frame, n);
	first = first_time(place);
	yes = to_fail(place, first);
	if (yes || first)
		say(yes ? "!" : "", place);
	if (yes && fault.log >= 0)
		backtrace_symbols_fd(frame + SKIP, n - SKIP, fault.log);
	pthread_mutex_unlock(&fault.lock);
	inside = false;
	errno = yes ? ENOMEM : error;
	return yes;
}

/* To look one up may allocate, which must then do without. */
#define WRAP(type, name, params, args, failed)                               \
	type name params                                                     \
	{                                                                    \
		static __typeof__(&name) real;                               \
		static __thread bool looking                                 \
			__attribute__((tls_model("initial-exec")));          \
		if (looking || fails(__builtin_return_address(0)))           \
			return failed;                                       \
		if (!real) {                                                 \
			looking = true;                                      \
			real = (__typeof__(&name))dlsym(RTLD_NEXT, #name);   \
			looking = false;                                     \
		}                                                            \
		return real args;                                            \
	}

WRAP(void *, malloc, (size_t n), (n), NULL)
WRAP(void *, calloc, (size_t n, size_t size), (n, size), NULL)
WRAP(void *, realloc, (void *p, size_t n), (p, n), NULL)
WRAP(void *, aligned_alloc, (size_t align, size_t n), (align, n), NULL)
WRAP(int, posix_memalign, (void **out, size_t align, size_t n), (out, align, n), ENOMEM)
WRAP(void *, mmap, (void *at, size_t n, int prot, int flags, int fd, off_t off),
     (at, n, prot, flags, fd, off), MAP_FAILED)
WRAP(int, pthread_create,
     (pthread_t *thread, const pthread_attr_t *attr, void *(*fn)(void *), void *arg),
     (thread, attr, fn, arg), EAGAIN)
