/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "encode_device.h"

static void table_fill(const struct eq_coding *c, unsigned i, struct eq_encode_table *t)
{
	const struct eq_freq *f = &c->freq[i];

	memcpy(t->entry, c->enc[i].entry, sizeof(t->entry));
	t->pad = c->enc[i].pad;
	if (f->mode != EQ_TABLE_PAIR)
		return;
	t->fill = f->nibble[0];
	eq_pair_index(f, t->index);
}

int eq_device_plan(const struct eq_coding *c, struct eq_encode_plan *plan)
{
	struct eq_encode_table *table = calloc(c->n_freq + 1, sizeof(*table));
	unsigned i;

	*plan = (struct eq_encode_plan){ .codec = c->codec, .unit = c->unit,
					 .transform = c->transform, .n_tables = c->n_freq,
					 .table = table };
	if (!table)
		return -ENOMEM;
	for (i = 0; i < c->n_freq; i++)
		table_fill(c, i, &table[i]);
	return 0;
}

void eq_device_parts(const struct eq_coding *c, uint32_t chunk, struct eq_encode_part part[8])
{
	unsigned first = c->codec == EQ_CODEC_QUANT, n = first ? 1 : c->n_parts, i;

	for (i = 0; i < n; i++) {
		unsigned p = first + i;

		part[i] = (struct eq_encode_part){ c->part[p].kind, eq_coding_arg(c, p, chunk),
						   c->part[p].spare };
	}
}
