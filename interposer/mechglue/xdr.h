/*
 * XDR (RFC 4506) read in place and written into memory that grows: what gss_proxy_xdr.c, which is generated, is written
 * with. Nothing here allocates but a writer, and no length a peer has sent is believed beyond the bytes that are there.
 */
#ifndef GSSPROXYD_XDR_H
#define GSSPROXYD_XDR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The longest message that is written or read, in bytes: the C daemon's limit and ours. */
#define XDR_MAX (1u << 20)

/* Bytes of somebody else's memory: a reply, an argument. p may be NULL only if n is 0. */
struct xdr_bytes {
	const uint8_t *p;
	uint32_t n;
};

/* A list as it lies on the wire, without its count: read it element by element with a reader of raw. */
struct xdr_list {
	uint32_t count;
	struct xdr_bytes raw;
};

/* A reader goes through bytes once. After the first thing that is not there, bad is set, and everything read is zero. */
struct xdr_reader {
	const uint8_t *p, *end;
	bool bad;
};

struct xdr_reader xdr_reader_of(struct xdr_bytes b);
uint32_t xdr_get_u32(struct xdr_reader *r);
uint64_t xdr_get_u64(struct xdr_reader *r);
bool xdr_get_bool(struct xdr_reader *r); /* 0 or 1; anything else is bad */
struct xdr_bytes xdr_get_opaque(struct xdr_reader *r);
struct xdr_bytes xdr_since(const struct xdr_reader *r, const uint8_t *start); /* what was read from start on; empty if bad */
uint32_t xdr_get_count(struct xdr_reader *r, uint32_t least); /* of elements of at least that many bytes each */

/*
 * A writer appends to p, which it owns and which xdr_writer_free overwrites and frees. When there is no memory, or more
 * than XDR_MAX bytes, failed is set and nothing more is written: look once, at the end.
 */
struct xdr_writer {
	uint8_t *p;
	size_t n, cap;
	bool failed;
};

void xdr_put_u32(struct xdr_writer *w, uint32_t v);
void xdr_put_u64(struct xdr_writer *w, uint64_t v);
void xdr_put_bool(struct xdr_writer *w, bool v);
void xdr_put_opaque(struct xdr_writer *w, struct xdr_bytes b);
void xdr_put_raw(struct xdr_writer *w, struct xdr_bytes b); /* b is encoded already */
void xdr_writer_free(struct xdr_writer *w);

#endif
