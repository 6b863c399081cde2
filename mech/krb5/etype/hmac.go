package etype

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding"
	"hash"
	"sync"
)

// digest numbers the hash functions in use.
type digest uint8

const (
	hashMD5 digest = iota
	hashSHA1
	hashSHA256
	hashSHA384
)

const (
	maxBlock = sha512.BlockSize
	maxSum   = sha512.Size384
)

// state is a hash whose intermediate value can be saved and loaded, which those of the standard
// library can: six nanoseconds against one or two compressions for the padded key of an HMAC.
type state interface {
	hash.Hash
	encoding.BinaryAppender
	encoding.BinaryUnmarshaler
}

// workspace is what one operation needs besides the key: a hash and buffers that may be handed to
// interface methods without an allocation. It belongs to one goroutine between get and put.
type workspace struct {
	h     state
	outer []byte // saved state for the second half of the HMAC under way; nil: pad is to be used
	block int    // block size of h
	pad   [maxBlock]byte
	sum   [maxSum]byte
	buf   [48]byte
	conf  [16]byte // confounder
	prev  [16]byte
}

// workspaces are reused: their making costs more than most operations.
var workspaces = [...]sync.Pool{
	hashMD5:    {New: func() any { return newWorkspace(md5.New()) }},
	hashSHA1:   {New: func() any { return newWorkspace(sha1.New()) }},
	hashSHA256: {New: func() any { return newWorkspace(sha256.New()) }},
	hashSHA384: {New: func() any { return newWorkspace(sha512.New384()) }},
}

func newWorkspace(h hash.Hash) *workspace { return &workspace{h: h.(state), block: h.BlockSize()} }

func (d digest) get() *workspace { return workspaces[d].Get().(*workspace) }

// put returns w with nothing secret left in its own buffers.
func (d digest) put(w *workspace) {
	w.h.Reset()
	w.outer = nil
	clear(w.pad[:])
	clear(w.sum[:])
	clear(w.buf[:])
	clear(w.conf[:])
	clear(w.prev[:])
	workspaces[d].Put(w)
}

// The inner padding of RFC 2104, and what makes the outer one of it.
var (
	ipad    = repeat(0x36)
	flipPad = repeat(0x36 ^ 0x5c)
)

func repeat(b byte) (r [maxBlock]byte) {
	for i := range r {
		r[i] = b
	}
	return r
}

// macKey is an HMAC key: the states of the inner and outer hash after the padded key.
type macKey struct {
	inner, outer []byte
}

func (k *macKey) zero() {
	clear(k.inner)
	clear(k.outer)
}

// macKey prepares key, at most one block long.
func (w *workspace) macKey(key []byte) macKey {
	w.start(key)
	b, _ := w.h.AppendBinary(make([]byte, 0, 256))
	n := len(b)
	w.flip()
	b, _ = w.h.AppendBinary(b)
	return macKey{inner: b[:n:n], outer: b[n:]}
}

// start begins an HMAC under a bare key, at most one block long.
func (w *workspace) start(key []byte) {
	w.outer = nil
	pad := w.pad[:w.block]
	copy(pad, ipad[:])
	subtle.XORBytes(pad, pad, key)
	w.h.Reset()
	w.h.Write(pad)
}

// flip turns the inner pad into the outer one and begins the outer hash.
func (w *workspace) flip() {
	pad := w.pad[:w.block]
	subtle.XORBytes(pad, pad, flipPad[:])
	w.h.Reset()
	w.h.Write(pad)
}

// resume begins an HMAC under a prepared key.
func (w *workspace) resume(k *macKey) {
	w.outer = k.outer
	w.load(k.inner)
}

// load restores a state this package saved; the hash refuses only what it did not make itself.
func (w *workspace) load(saved []byte) {
	if err := w.h.UnmarshalBinary(saved); err != nil {
		panic("etype: hash refuses its own saved state: " + err.Error())
	}
}

// finish ends the HMAC that start or resume began. The result is overwritten by the next one.
func (w *workspace) finish() []byte {
	inner := w.h.Sum(w.sum[:0])
	if w.outer != nil {
		w.load(w.outer)
	} else {
		w.flip()
	}
	w.h.Write(inner)
	return w.h.Sum(w.sum[:0])
}
