/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes: what the kernel knows as inodes. A node is a file of the store, told
 * apart by device and inode number and held by an O_PATH descriptor, so that it
 * is found again without any path.
 */
#ifndef EQ_INODE_H
#define EQ_INODE_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <time.h>

#include "ids.h"
#include "name.h"
#include "queue.h"

#define EQ_NODE_LOGGED 8
#define EQ_NODE_SENT_ON 8

/* What stat shows of an archive, kept while the archive stays the same. */
struct eq_meta {
	bool known;
	struct timespec ctim;   /* of the archive, when this was read */
	off_t stored;
	uint64_t size;
	struct timespec mtime;
};

/* What differs when a file was written. */
struct eq_version {
	off_t size;
	struct timespec mtime;
};

struct eq_node {
	mode_t type;            /* S_IFMT part; never changes */
	int fd;                 /* O_PATH; its number never changes, but a plain file may
	                           become an archive under it, or the other way round. */
	_Atomic bool archive;

	/* Belong to the table. */
	struct eq_node *next;
	dev_t dev;
	ino_t ino;
	uint64_t refs;          /* the kernel's lookups together count as one */
	uint64_t waits;         /* of these, those of what waits to be encoded */
	uint64_t lookups;
	_Atomic uint64_t id;    /* 0: the kernel has never heard of it */
	uint64_t also;          /* list of its other numbers, see ids.h */
	struct eq_node *heir;   /* whose its numbers are when it goes, with a reference; or NULL */
	bool used;              /* looked up since the search for idle ones came by */
	struct eq_node *parent; /* where it was last seen, with a reference; or NULL */
	char *name;

	pthread_mutex_t lock;   /* of what follows */
	struct eq_meta meta;
	unsigned files;         /* handles that are open */
	unsigned writers;       /* of these, for writing */
	bool outdated;          /* the kernel's cached pages may not be the archive's */
	bool twice;             /* the kernel has it under two numbers, and caches for each */
	struct stat counted;    /* while there are writers: what the statistics have of it */
	struct eq_version unwritten; /* likewise: what it is if none of them writes */
	bool dirty;             /* written through the mount and not yet encoded */
	bool swapped;           /* its name now belongs to the archive made of it */
	struct timespec swapped_at; /* (CLOCK_MONOTONIC) if that has other contents */
	pid_t sent_on[EQ_NODE_SENT_ON]; /* who was told to look that name up, since then */
	unsigned n_sent_on;
	bool pinned;            /* dirty nodes hold a reference to themselves */
	char *reason;           /* why it was not encoded, or NULL */
	struct timespec seen;   /* modification time when last opened */
	uint64_t logged[EQ_NODE_LOGGED]; /* hashes of messages already logged */
	unsigned n_logged;
	unsigned opens;         /* the kernel's open files, all in one way: */
	int backing;            /* its number for what they are passed through to, or 0 */
	bool unsettled;         /* is being made plain: nothing new is passed through */
	bool written_past;      /* someone could write to it without our hearing of it */

	_Atomic uint64_t changes; /* counts what makes a running encode pointless */
	pthread_mutex_t change; /* held while an archive is made plain; comes before
	                           every other lock */

	struct eq_wait wait;    /* belongs to the encoding queue */
};

struct eq_nodes {
	pthread_mutex_t lock;
	struct eq_node **bucket;
	size_t n_buckets, count;
	size_t known;           /* of these, those that the kernel knows */
	struct eq_ids ids;
	struct eq_node *root;
	pthread_cond_t crowded; /* (of CLOCK_MONOTONIC, both) signalled when there are more than `many`, if that is set */
	size_t many;            /* set by who waits for that */
	pthread_cond_t room;    /* signalled when there are no more than that again */
	size_t hand;            /* bucket where the search for idle ones goes on */
};

/* The table, with a node for the root directory (root_fd is borrowed). */
int eq_nodes_init(struct eq_nodes *t, int root_fd);
void eq_nodes_fini(struct eq_nodes *t);

/*
 * The node of what was found as NAME in parent (NULL: nobody knows where), with a
 * reference for the caller, or, when kernel is set, one more lookup by the kernel
 * instead. Takes f->fd over in any case. 0 or -ENOMEM.
 */
int eq_node_take(struct eq_nodes *t, struct eq_found *f, struct eq_node *parent, const char *name,
		 bool kernel, struct eq_node **out);
/* The node of a number that the kernel has looked up and not forgotten. */
static inline struct eq_node *eq_node_of_id(const struct eq_nodes *t, uint64_t id)
{
	return id == EQ_ID_ROOT ? t->root : eq_id_node(&t->ids, id);
}
/*
 * The file of a number that may be forgotten, or have never been: its node, with a
 * reference, or, if it has none, the file opened as f->fd, and *out is NULL. 0 or
 * -ESTALE or another -errno.
 */
int eq_node_by_id(struct eq_nodes *t, uint64_t id, struct eq_node **out, struct eq_found *f);
/* Likewise, of the directory in which the file of that number was last seen. */
int eq_node_last_dir(struct eq_nodes *t, uint64_t id, struct eq_node **out, struct eq_found *f);
/* Is this one of the numbers of n? */
bool eq_node_answers(struct eq_nodes *t, struct eq_node *n, uint64_t id);
/* One more lookup by the kernel, of a node to which the caller has a reference; that goes,
 * also upon -ENOMEM. */
int eq_node_show(struct eq_nodes *t, struct eq_node *n);
/* The node of a file, if there is one, with a reference; or NULL. */
struct eq_node *eq_node_find(struct eq_nodes *t, const struct eq_found *f);
void eq_node_ref(struct eq_nodes *t, struct eq_node *n);
void eq_node_unref(struct eq_nodes *t, struct eq_node *n);
/* Likewise, a reference because of which it waits to be encoded. */
void eq_node_ref_wait(struct eq_nodes *t, struct eq_node *n);
void eq_node_unref_wait(struct eq_nodes *t, struct eq_node *n);
/* Are these, and the caller's, the only ones to n? */
bool eq_node_waits_only(struct eq_nodes *t, struct eq_node *n);
/* The kernel drops n of its lookups. */
void eq_node_forget(struct eq_nodes *t, struct eq_node *node, uint64_t n);

/*
 * Up to max nodes that only the kernel's lookups hold, and those not lately, or that wait
 * to be encoded, each with a reference for the caller, out of the next *left buckets, which becomes how many are
 * left of these. 0: there are none in them. The second time around finds all.
 */
size_t eq_nodes_idle(struct eq_nodes *t, struct eq_node **out, size_t max, size_t *left);

/* Where the node is: parent with a reference, and the name. -ENOENT: nowhere. */
int eq_node_place(struct eq_nodes *t, struct eq_node *n, struct eq_node **parent,
		  char name[NAME_MAX + 1]);
/* It is there from now on. 0 or -ENOMEM (and then it is nowhere). */
int eq_node_move(struct eq_nodes *t, struct eq_node *n, struct eq_node *parent, const char *name);
/* It is there no longer; nothing happens if it was somewhere else. parent NULL:
 * wherever it was. */
void eq_node_remove(struct eq_nodes *t, struct eq_node *n, struct eq_node *parent,
		    const char *name);
/* Does it have the name of a download that is not complete? */
bool eq_node_partial(struct eq_nodes *t, struct eq_node *n);
/* "dir/name" for messages; cut if buf is too small. Of what was found without a name it
 * is asked from the kernel. */
void eq_node_path(struct eq_nodes *t, struct eq_node *n, char *buf, size_t size);
/* The node is from now on fd (O_PATH; taken over on success): the plain file of its archive,
 * or the archive of its plain file. The caller holds n->lock. 0 or -errno. */
int eq_node_rebind(struct eq_nodes *t, struct eq_node *n, int fd, bool archive);

/* When n goes, its numbers are to be heir's (the reference is taken over): that is what the
 * file has become that n was. */
void eq_node_bequeath(struct eq_nodes *t, struct eq_node *n, struct eq_node *heir);

/* Was this text logged for the node already? Remembers it. */
bool eq_node_logged(struct eq_node *n, const char *text);

#endif
