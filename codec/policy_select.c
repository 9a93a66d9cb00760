/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which tensors a policy quantises. Without include patterns: the matrices of a
 * model's blocks, recognised by their names. The rule follows the names that
 * transformers, timm, and the original repositories of the common models use; it
 * leans to the lossless side where a name says too little. tests/unit_policy.c
 * has a table of real names with the decision on each.
 */
#include "eqcodec.h"

#include <string.h>

#include "utf8.h"

/* ---- globs --------------------------------------------------------------- */

struct text {
	const unsigned char *s, *end;
};

static uint32_t next_char(struct text *t)
{
	uint32_t ch;

	t->s += eq_utf8_next(t->s, (size_t)(t->end - t->s), &ch);
	return ch;
}

/* Next character of a set, '\' taken away. */
static uint32_t set_char(struct text *t)
{
	if (*t->s == '\\' && t->end - t->s > 1)
		t->s++;
	return next_char(t);
}

/*
 * A bracket expression, pat behind its '['. 1 if ch is in it, 0 if not, with pat
 * behind the ']'; -1 if there is no ']', so that the '[' stands for itself.
 */
static int match_set(struct text *pat, uint32_t ch)
{
	struct text t = *pat;
	bool negate = false, found = false;

	if (t.s < t.end && (*t.s == '!' || *t.s == '^')) {
		negate = true;
		t.s++;
	}
	for (const unsigned char *first = t.s; t.s < t.end; ) {
		if (*t.s == ']' && t.s != first) {
			pat->s = t.s + 1;
			return found != negate;
		}
		const uint32_t low = set_char(&t);
		uint32_t high = low;

		if (t.end - t.s > 1 && t.s[0] == '-' && t.s[1] != ']') {
			t.s++;
			high = set_char(&t);
		}
		found |= ch >= low && ch <= high;
	}
	return -1;
}

/* Match one pattern character other than '*' against one of the name. */
static bool match_one(struct text *pat, struct text *name)
{
	const uint32_t ch = next_char(name);
	const uint32_t c = next_char(pat);

	if (c == '?')
		return true;
	if (c == '[') {
		const int in = match_set(pat, ch);

		return in < 0 ? ch == '[' : in;
	}
	if (c == '\\' && pat->s < pat->end)
		return next_char(pat) == ch;
	return c == ch;
}

/*
 * fnmatch() without flags, that is with '*' matching '.' and '/' as well, but on
 * characters of UTF-8 whatever the locale (so no [:class:], [=x=], [.x.]), on
 * names that may hold NUL, and in at most |pattern| x |name| steps: on a
 * mismatch only the last '*' is widened.
 */
static bool glob_match(const char *pattern, const char *s, size_t len)
{
	struct text pat = { (const unsigned char *)pattern, NULL };
	struct text name = { (const unsigned char *)s, (const unsigned char *)s + len };
	struct text star = { NULL, NULL }, from = name;

	pat.end = pat.s + strlen(pattern);
	for (;;) {
		if (pat.s < pat.end && *pat.s == '*') {
			pat.s++;
			star = pat;
			from = name;
			continue;
		}
		if (pat.s == pat.end && name.s == name.end)
			return true;
		if (pat.s < pat.end && name.s < name.end && match_one(&pat, &name))
			continue;
		if (!star.s || from.s == from.end)
			return false;
		next_char(&from);
		name = from;
		pat = star;
	}
}

static bool any_match(char *const *globs, const struct eq_st_tensor *t)
{
	for (; globs && *globs; globs++)
		if (glob_match(*globs, t->name, t->name_len))
			return true;
	return false;
}

/* ---- names --------------------------------------------------------------- */

/* A component of a dotted name. */
struct part {
	const char *s;
	size_t len;
};

static int lower(int c)
{
	return c >= 'A' && c <= 'Z' ? c + 'a' - 'A' : c;
}

static bool starts(const char *s, size_t len, const char *what)
{
	const size_t n = strlen(what);

	if (n > len)
		return false;
	for (size_t i = 0; i < n; i++)
		if (lower((unsigned char)s[i]) != what[i])
			return false;
	return true;
}

static bool is(struct part p, const char *what)
{
	return p.len == strlen(what) && starts(p.s, p.len, what);
}

static bool contains(struct part p, const char *what)
{
	for (size_t i = 0; i < p.len; i++)
		if (starts(p.s + i, p.len - i, what))
			return true;
	return false;
}

/* Is what a word of the component, words being set apart by underscores? */
static bool has_word(struct part p, const char *what)
{
	const size_t n = strlen(what);

	for (size_t i = 0; i + n <= p.len; i++)
		if ((i == 0 || p.s[i - 1] == '_') &&
		    (i + n == p.len || p.s[i + n] == '_') &&
		    starts(p.s + i, p.len - i, what))
			return true;
	return false;
}

static bool last_word(struct part p, const char *what)
{
	const size_t n = strlen(what);

	return n <= p.len && (n == p.len || p.s[p.len - n - 1] == '_') &&
	       starts(p.s + p.len - n, n, what);
}

static bool is_number(struct part p)
{
	for (size_t i = 0; i < p.len; i++)
		if (p.s[i] < '0' || p.s[i] > '9')
			return false;
	return p.len > 0;
}

static bool in_list(struct part p, const char *const *list,
		    bool (*test)(struct part p, const char *what))
{
	for (; *list; list++)
		if (test(p, *list))
			return true;
	return false;
}

/* Modules whose matrices stay lossless although they may lie in a block. */
static bool is_kept(struct part p)
{
	static const char *const parts[] = {
		"gate", "gating", "shared_expert_gate", "ffn_gate_inp", /* routers */
		"wte", "wpe",           /* GPT-2's tables */
		/* the small inputs of state-space and delta-rule layers */
		"conv1d", "dt_proj", "in_proj_ba", "in_proj_a", "in_proj_b",
		NULL
	};
	static const char *const words[] = { "ln", "pos", "positional", "emb", NULL };
	static const char *const last_words[] = { "head", "heads", NULL };
	static const char *const pieces[] = {
		"norm", "embed", "embd", "router", "lora", "bias", "rotary",
		"classifier", "pooler",
		"projector", "merger",  /* between the towers of a model */
		NULL
	};

	return in_list(p, parts, is) || in_list(p, words, has_word) ||
	       in_list(p, last_words, last_word) || in_list(p, pieces, contains);
}

static bool is_expert(struct part p)
{
	return contains(p, "expert") || has_word(p, "moe");
}

static bool is_weight(struct part last)
{
	/* torch's MultiheadAttention holds its matrices as bare parameters. */
	static const char *const names[] = {
		"weight", "in_proj_weight", "q_proj_weight", "k_proj_weight",
		"v_proj_weight", NULL
	};

	return in_list(last, names, is);
}

/* Parameters that hold the matrices of all experts, without ".weight". */
static bool is_stack(struct part last)
{
	static const char *const names[] = {
		"gate_up_proj", "gate_proj", "up_proj", "down_proj",
		"w1", "w2", "w3", "v1", "w13", NULL
	};

	return in_list(last, names, is);
}

static bool default_selects(const struct eq_st_tensor *t)
{
	const char *s = t->name, *end = s + t->name_len;
	struct part p = { NULL, 0 };
	bool block = false, expert = false;

	if (t->dims[t->ndim - 1] < 32 || t->dims[t->ndim - 2] < 32)
		return false;
	for (bool first = true; s <= end; first = false) {
		const char *dot = memchr(s, '.', (size_t)(end - s));

		p.s = s;
		p.len = (size_t)((dot ? dot : end) - s);
		s += p.len + 1;
		if (is_kept(p))
			return false;
		/* A leading number (0.auto_model.pooler) counts modules, not blocks. */
		block |= !first && is_number(p);
		expert |= is_expert(p);
	}
	if (!block || (t->ndim == 3 && !expert))
		return false;
	return is_weight(p) || (expert && is_stack(p));
}

bool eq_policy_selects(const struct eq_policy *p, const struct eq_st_tensor *t)
{
	if (!eq_policy_lossy(p) || (t->ndim != 2 && t->ndim != 3))
		return false;
	if (t->dtype != EQ_BF16 && t->dtype != EQ_F16 && t->dtype != EQ_F32)
		return false;
	if (t->begin == t->end || any_match(p->exclude, t))
		return false;
	return p->include ? any_match(p->include, t) : default_selects(t);
}
