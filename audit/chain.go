package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"strconv"
	"strings"
)

// Head is where a chain has got to: its last line's seq and hash.
type Head struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

// String returns "seq:hash", as it is in the ordinary log.
func (h Head) String() string { return strconv.FormatUint(h.Seq, 10) + ":" + h.Hash }

// ParseHead reads what [Head.String] writes.
func ParseHead(s string) (Head, error) {
	seq, hash, _ := strings.Cut(s, ":")
	n, err := strconv.ParseUint(seq, 10, 64)
	if err != nil || n == 0 || !isHash([]byte(hash)) {
		return Head{}, fmt.Errorf("%q is no head of a chain: SEQ:HASH is expected, as the program has logged it, with 64 hexadecimal digits behind the colon", s)
	}
	return Head{n, hash}, nil
}

// digest is a SHA-256 in hexadecimal.
type digest [2 * sha256.Size]byte

// noLine is in the place of the hash of the line before the first.
var noLine = digest(bytes.Repeat([]byte{'0'}, 2*sha256.Size))

// isHash reports whether b is a digest, written as this package does it.
func isHash(b []byte) bool {
	for _, c := range b {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return len(b) == len(digest{})
}

// chain makes lines of fields, each with the hash of the one before.
type chain struct {
	seq  uint64
	last digest

	h   hash.Hash
	sum [sha256.Size]byte
}

func newChain() chain { return chain{last: noLine, h: sha256.New()} }

func (c *chain) head() Head { return Head{c.seq, string(c.last[:])} }

// next is the digest of a line that follows, whose fields are given with both braces.
func (c *chain) next(fields []byte) (d digest) {
	c.h.Reset()
	c.h.Write(c.last[:])
	c.h.Write(fields)
	hex.Encode(d[:], c.h.Sum(c.sum[:0]))
	return d
}

const (
	lineStart = `{"seq":`
	hashStart = `,"hash":"`
	lineEnd   = `"}`
	lineTail  = len(hashStart) + len(digest{}) + len(lineEnd)
)

// append appends the next line to b, with what appendFields has made.
func (c *chain) append(b, fields []byte) []byte {
	start := len(b)
	b = append(b, lineStart...)
	b = strconv.AppendUint(b, c.seq+1, 10)
	b = append(b, fields...)
	b = append(b, '}')
	c.last = c.next(b[start:])
	c.seq++
	b = append(b[:len(b)-1], hashStart...)
	b = append(b, c.last[:]...)
	return append(b, lineEnd+"\n"...)
}

// whole is a line that has a beginning and an end as chain.append makes them.
type whole struct {
	seq  uint64
	hash digest
}

// parseWhole takes a line without its newline, and reports whether it is whole. What is between
// beginning and end, and whether the hash fits, is not looked at.
func parseWhole(line []byte) (w whole, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(lineStart))
	if !ok || len(rest) < lineTail || !bytes.HasSuffix(rest, []byte(lineEnd)) {
		return w, false
	}
	tail := rest[len(rest)-lineTail:]
	hash := tail[len(hashStart) : len(tail)-len(lineEnd)]
	if !bytes.HasPrefix(tail, []byte(hashStart)) || !isHash(hash) {
		return w, false
	}
	digits := bytes.IndexByte(rest, ',')
	seq, err := strconv.ParseUint(string(rest[:digits]), 10, 64)
	if err != nil || seq == 0 || rest[0] == '0' || rest[0] == '+' {
		return w, false
	}
	return whole{seq, digest(hash)}, true
}

// unhashed appends a whole line to b without its hash, as the hash is of it.
func unhashed(b, line []byte) []byte {
	return append(append(b, line[:len(line)-lineTail]...), '}')
}
