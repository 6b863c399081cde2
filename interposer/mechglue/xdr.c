#include <stdlib.h>
#include <string.h>

#include "xdr.h"

struct xdr_reader xdr_reader_of(struct xdr_bytes b)
{
	struct xdr_reader r = { .p = b.p, .end = b.p };

	if (b.n > 0)
		r.end += b.n;
	return r;
}

/* take goes n bytes on, and returns where they begin; NULL if they are not there. */
static const uint8_t *take(struct xdr_reader *r, uint32_t n)
{
	const uint8_t *p = r->p;

	if (r->bad || n > (size_t)(r->end - p)) {
		r->bad = true;
		r->p = r->end;
		return NULL;
	}
	r->p += n;
	return p;
}

uint32_t xdr_get_u32(struct xdr_reader *r)
{
	const uint8_t *p = take(r, 4);

	if (!p)
		return 0;
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

uint64_t xdr_get_u64(struct xdr_reader *r)
{
	uint64_t high = xdr_get_u32(r);
	uint64_t low = xdr_get_u32(r);

	return r->bad ? 0 : high << 32 | low;
}

bool xdr_get_bool(struct xdr_reader *r)
{
	uint32_t v = xdr_get_u32(r);

	if (v > 1)
		r->bad = true;
	return v == 1;
}

struct xdr_bytes xdr_get_opaque(struct xdr_reader *r)
{
	uint32_t n = xdr_get_u32(r);
	const uint8_t *p = take(r, n);

	take(r, -n & 3); /* the padding may hold anything */
	if (r->bad)
		return (struct xdr_bytes){ 0 };
	return (struct xdr_bytes){ p, n };
}

struct xdr_bytes xdr_since(const struct xdr_reader *r, const uint8_t *start)
{
	if (r->bad)
		return (struct xdr_bytes){ 0 };
	return (struct xdr_bytes){ start, (uint32_t)(r->p - start) };
}

uint32_t xdr_get_count(struct xdr_reader *r, uint32_t least)
{
	uint32_t n = xdr_get_u32(r);

	if ((uint64_t)n * least > (size_t)(r->end - r->p)) {
		r->bad = true;
		return 0;
	}
	return n;
}

/*
 * room returns where n more bytes are to be written; NULL if they are not to be. Memory that has become too small is
 * overwritten, which realloc would not do.
 */
static uint8_t *room(struct xdr_writer *w, size_t n)
{
	if (w->failed || n > XDR_MAX - w->n) {
		w->failed = true;
		return NULL;
	}
	if (n > w->cap - w->n) {
		size_t cap = w->cap ? w->cap : 2048;
		uint8_t *p;

		while (n > cap - w->n)
			cap *= 2;
		p = malloc(cap);
		if (!p) {
			w->failed = true;
			return NULL;
		}
		if (w->p) {
			memcpy(p, w->p, w->n);
			explicit_bzero(w->p, w->n);
			free(w->p);
		}
		w->p = p;
		w->cap = cap;
	}
	w->n += n;
	return w->p + w->n - n;
}

void xdr_put_u32(struct xdr_writer *w, uint32_t v)
{
	uint8_t *p = room(w, 4);

	if (!p)
		return;
	p[0] = (uint8_t)(v >> 24);
	p[1] = (uint8_t)(v >> 16);
	p[2] = (uint8_t)(v >> 8);
	p[3] = (uint8_t)v;
}

void xdr_put_u64(struct xdr_writer *w, uint64_t v)
{
	xdr_put_u32(w, (uint32_t)(v >> 32));
	xdr_put_u32(w, (uint32_t)v);
}

void xdr_put_bool(struct xdr_writer *w, bool v)
{
	xdr_put_u32(w, v);
}

void xdr_put_opaque(struct xdr_writer *w, struct xdr_bytes b)
{
	size_t pad = -b.n & 3;
	uint8_t *p;

	xdr_put_u32(w, b.n);
	xdr_put_raw(w, b);
	p = room(w, pad);
	if (p)
		memset(p, 0, pad);
}

void xdr_put_raw(struct xdr_writer *w, struct xdr_bytes b)
{
	uint8_t *p = room(w, b.n);

	if (p && b.n > 0)
		memcpy(p, b.p, b.n);
}

void xdr_writer_free(struct xdr_writer *w)
{
	if (w->p)
		explicit_bzero(w->p, w->n);
	free(w->p);
	*w = (struct xdr_writer){ 0 };
}
