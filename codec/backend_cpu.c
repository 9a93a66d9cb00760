/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoding on the CPU. Chunks of the same tensor go in teams: one rANS chunk
 * alone waits for its own results, several together keep the core busy. A team
 * advances tile by tile, so that planes and symbols stay in the first-level
 * cache between the decoder and the loop that makes units of them.
 *
 * Nothing here trusts the bytes of a chunk: eq_chunk_start settles all lengths
 * before anything is read, tables are complete by construction (every slot has
 * an entry), and the rest is checked while decoding.
 */
#include <pthread.h>
#include <string.h>

#include "backend_simple.h"
#include "chunk_dec.h"

#define TEAM 4                  /* chunks at once, at most */

/* ---- symbols --------------------------------------------------------------- */

/* Pair symbols -> n bytes of the tile; what the last block has beyond n bytes
 * is padding, and its escapes do not count. */
static int expand_tile(const struct eq_kernels *k, struct eq_part *p,
		       const uint8_t *pair, uint32_t pos, uint32_t n,
		       uint8_t *tile)
{
	size_t blocks = (n + 127) / 128, n_15;
	uint32_t i;

	n_15 = k->pair_expand(pair, blocks, p->table->nibble, tile);
	for (i = n; i < blocks * 128; i++) {
		unsigned nibbles = pair[i / 128 * 64 + i % 64];

		n_15 -= (i % 128 < 64 ? nibbles & 15 : nibbles >> 4) == 15;
	}
	if (eq_escapes_take(p, pair, n_15, pos, n, &i))
		return EQ_ECORRUPT;
	for (; i < p->next_escape; i++)
		tile[(p->escapes[i] >> 8) - pos] = (uint8_t)p->escapes[i];
	return 0;
}

/* Run decoders that want different numbers of groups. */
static void run_decoders(const struct eq_kernels *k, struct eq_rans_dec **dec,
			 uint8_t **out, size_t *groups, unsigned n)
{
	while (n) {
		size_t now = groups[0];
		unsigned left = 0;

		for (unsigned i = 1; i < n; i++)
			now = groups[i] < now ? groups[i] : now;
		k->rans_decode(dec, out, n, now);
		for (unsigned i = 0; i < n; i++) {
			if (groups[i] == now)
				continue;
			dec[left] = dec[i];
			out[left] = out[i] + now * EQ_GROUP;
			groups[left++] = groups[i] - now;
		}
		n = left;
	}
}

/* Decode part i of all members as far as the tile at pos goes. */
static void decode_tile(const struct eq_kernels *k, struct eq_member *const *team,
			unsigned n_team, unsigned i, uint32_t pos)
{
	struct eq_rans_dec *dec[TEAM];
	uint8_t *out[TEAM];
	size_t groups[TEAM];
	unsigned n = 0;

	for (unsigned j = 0; j < n_team; j++) {
		struct eq_member *m = team[j];
		uint32_t units = eq_tile_units(m, pos);

		if (!units || m->job->status || !m->part[i].table)
			continue;
		dec[n] = &m->part[i].dec;
		if (m->part[i].head.kind == EQ_PART_PAIR) {
			out[n] = m->pair;
			groups[n++] = (units + 255) / 256;
		} else {
			out[n] = eq_tile_dest(m, i, pos);
			groups[n++] = (units + 127) / 128;
		}
	}
	run_decoders(k, dec, out, groups, n);
	for (unsigned j = 0; j < n_team; j++) {
		struct eq_member *m = team[j];
		uint32_t units = eq_tile_units(m, pos);

		if (units && !m->job->status &&
		    m->part[i].head.kind == EQ_PART_PAIR &&
		    !eq_pairs_to_units(m, i, pos) &&
		    expand_tile(k, &m->part[i], m->pair, pos, units,
				eq_tile_dest(m, i, pos)))
			eq_member_fail(m);
	}
}

/* ---- teams ----------------------------------------------------------------- */

/* Up to TEAM jobs of one plan. */
static void decode_team(const struct eq_kernels *k, struct eq_decode_job *jobs,
			unsigned n)
{
	const struct eq_plan *plan = jobs[0].plan;
	bool quant = plan->codec == EQ_CODEC_QUANT;
	struct eq_member store[TEAM], *team[TEAM];
	uint32_t longest = 0, tile_len = eq_tile_len(plan, n);

	for (unsigned j = 0; j < n; j++) {
		struct eq_member *m = team[j] = &store[j];

		m->job = &jobs[j];
		m->tile_len = tile_len;
		eq_chunk_start(m);
		if (!m->job->status && m->job->n_units > longest)
			longest = m->job->n_units;
	}
	for (uint32_t pos = 0; pos < longest; pos += tile_len) {
		for (unsigned i = quant; i < (quant ? 2u : plan->unit); i++)
			decode_tile(k, team, n, i, pos);
		for (unsigned j = 0; j < n; j++)
			if (!team[j]->job->status && eq_tile_units(team[j], pos))
				eq_chunk_units(k, team[j], pos);
	}
	for (unsigned j = 0; j < n; j++)
		eq_chunk_finish(team[j]);
}

/* ---- the back end ----------------------------------------------------------- */

/* ctx is the table of kernels to use; NULL, the best one. */
static int cpu_decode(void *ctx, struct eq_decode_job *jobs, size_t n)
{
	const struct eq_kernels *k = ctx ? ctx : eq_kernels_get();
	unsigned team;

	for (size_t i = 0; i < n; i += team) {
		const struct eq_plan *plan = jobs[i].plan;

		team = 1;
		jobs[i].status = 0;
		if (!jobs[i].n_units)
			continue;
		if (plan->codec != EQ_CODEC_PLANES &&
		    plan->codec != EQ_CODEC_QUANT) {
			jobs[i].status = eq_decode_simple(&jobs[i]);
			continue;
		}
		while (team < TEAM && team < k->streams && i + team < n &&
		       jobs[i + team].plan == plan && jobs[i + team].n_units)
			jobs[i + team++].status = 0;
		decode_team(k, &jobs[i], team);
	}
	return 0;
}

static struct eq_backend cpu_backend = {
	.abi = EQ_BACKEND_ABI,
	.decode = cpu_decode,
};
static pthread_once_t cpu_once = PTHREAD_ONCE_INIT;
static char cpu_name[16];

static void cpu_init(void)
{
	strcpy(cpu_name, "cpu/");
	strncat(cpu_name, eq_cpu_isa(), sizeof(cpu_name) - 5);
	cpu_backend.name = cpu_name;
}

const struct eq_backend *eq_backend_cpu(void)
{
	pthread_once(&cpu_once, cpu_init);
	return &cpu_backend;
}

const char *eq_backend_name(const struct eq_backend *be)
{
	return __atomic_load_n(&be->name, __ATOMIC_RELAXED);
}
