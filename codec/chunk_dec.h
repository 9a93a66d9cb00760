/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One chunk while the CPU decodes it, tile by tile: what backend_cpu.c (teams and
 * symbols), chunk_layout.c (what is where) and chunk_units.c (symbols to units)
 * share. Nothing else needs it.
 */
#ifndef EQ_CHUNK_DEC_H
#define EQ_CHUNK_DEC_H

#include <math.h>
#include <stdbool.h>

#include "backend.h"
#include "eqcodec.h"
#include "format.h"
#include "rans.h"

/* Units of a tile at most: a multiple of 256 * 4. All chunks of a team together
 * have twice as many; more leave the cache, fewer let decoders start and stop too
 * often. */
#define EQ_TILE 8192u
#define EQ_PARTS_MAX 8

struct eq_part {
	struct eq_disk_part head;
	const uint8_t *data;
	const uint32_t *escapes;        /* PAIR, n_entries */
	uint32_t next_escape;
	const struct eq_table *table;
	struct eq_rans_dec dec;
};

/* One chunk of the team. */
struct eq_member {
	struct eq_decode_job *job;
	uint32_t tile_len;      /* units of a tile */
	unsigned n_parts;
	struct eq_part part[EQ_PARTS_MAX];
	/* Quantised only: row of the unit that comes next, units left of it, and
	 * the table of that row. */
	uint64_t row;
	uint64_t row_left;
	/* All symbols that can occur have a value, finite in all rows: none
	 * needs to be looked at. */
	bool exact;
	union {
		uint16_t u16[256];
		uint32_t u32[256];
	} lut __attribute__((aligned(64)));
	uint8_t tile[2 * EQ_TILE] __attribute__((aligned(64)));
	uint8_t pair[EQ_TILE / 2] __attribute__((aligned(64)));
};

static inline void eq_member_fail(struct eq_member *m)
{
	m->job->status = EQ_ECORRUPT;
}

/* Units of a tile of each of n chunks; planes share the room of two. */
static inline uint32_t eq_tile_len(const struct eq_plan *plan, unsigned n)
{
	uint32_t len = n > 2 ? EQ_TILE / 2 : EQ_TILE;

	return plan->codec == EQ_CODEC_PLANES && plan->unit > 2 ? len * 2 / plan->unit :
								  len;
}

/* Units of the tile at `pos` that the member has. */
static inline uint32_t eq_tile_units(const struct eq_member *m, uint32_t pos)
{
	uint32_t n = m->job->n_units;

	return pos >= n ? 0 : n - pos < m->tile_len ? n - pos : m->tile_len;
}

/* The room for a tile's bytes of part i. */
static inline uint8_t *eq_tile(struct eq_member *m, unsigned i)
{
	return m->tile + (size_t)i * m->tile_len;
}

/* Where the decoder puts the bytes of part i in the tile at pos: whole blocks of
 * what is units already go where they belong. */
static inline uint8_t *eq_tile_dest(struct eq_member *m, unsigned i, uint32_t pos)
{
	bool units = m->job->plan->codec == EQ_CODEC_PLANES && m->job->plan->unit == 1;

	return units && eq_tile_units(m, pos) % EQ_GROUP == 0 ?
		       (uint8_t *)m->job->out + pos : eq_tile(m, i);
}

static inline bool eq_has_value(const struct eq_plan *plan, uint8_t sym)
{
	return !isnan(plan->value[sym]);
}

/* The scale of row i of the chunk. */
float eq_scale_at(const struct eq_member *m, uint64_t i);

/* Read and check the heads of the parts, start the decoders. A chunk that is not
 * right fails, here and below: its job gets the status. */
void eq_chunk_start(struct eq_member *m);

/*
 * Check the escapes of n bytes from the unit at pos, given their pair symbols,
 * n_15 of whose nibbles are 15. They are those from *first to p->next_escape.
 */
int eq_escapes_take(struct eq_part *p, const uint8_t *pair, size_t n_15, uint32_t pos,
		    uint32_t n, uint32_t *first);

/* Whether the pairs of part i need not be expanded to bytes: the tile at pos
 * becomes units of two bytes in whole blocks, each looked up in one table. */
bool eq_pairs_to_units(const struct eq_member *m, unsigned i, uint32_t pos);

/* Make units of the tile at pos, whose parts are decoded. */
void eq_chunk_units(const struct eq_kernels *k, struct eq_member *m, uint32_t pos);
/* After the last tile. */
void eq_chunk_finish(struct eq_member *m);

#endif
