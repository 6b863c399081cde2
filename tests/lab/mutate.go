package lab

import (
	"bytes"
	"math/rand/v2"

	"gssproxyd/mech/krb5/der"
)

// Mutate returns b with one value changed, sometimes several. It knows DER: changing bytes at
// random mostly breaks the outermost length and goes no further; this changes a value anywhere in
// the tree and, more often than not, makes the lengths around it right again.
func Mutate(r *rand.Rand, b []byte) []byte {
	roots, ok := parseTree(b)
	if !ok || len(roots) == 0 {
		return MutateBytes(r, b)
	}
	for range 1 + r.IntN(3)/2 {
		list := all(roots)
		n := list[r.IntN(len(list))]
		switch r.IntN(14) {
		case 0:
			n.tag = oddTags[r.IntN(len(oddTags))]
		case 1:
			n.tag ^= 1 << r.IntN(8)
		case 2:
			n.length = oddLengths[r.IntN(len(oddLengths))]
		case 3: // empty
			n.children, n.content = nil, nil
		case 4: // drop a child
			if k := len(n.children); k > 0 {
				i := r.IntN(k)
				n.children = append(append([]*node(nil), n.children[:i]...), n.children[i+1:]...)
			}
		case 5: // double a child
			if k := len(n.children); k > 0 {
				c := n.children[r.IntN(k)]
				n.children = append(append([]*node(nil), n.children...), c)
			}
		case 6: // double it many times
			if k := len(n.children); k > 0 {
				c := n.children[r.IntN(k)]
				for range r.IntN(300) {
					n.children = append(n.children, c)
				}
			}
		case 7: // change places
			if k := len(n.children); k > 1 {
				i, j := r.IntN(k), r.IntN(k)
				n.children[i], n.children[j] = n.children[j], n.children[i]
			}
		case 8: // another value from elsewhere
			o := list[r.IntN(len(list))]
			if o != n {
				n.content, n.children = o.encode(nil), nil
				if r.IntN(2) == 0 {
					n.tag = o.tag
				}
			}
		case 9: // truncate
			c := n.encodeContent()
			n.children, n.content = nil, c[:r.IntN(len(c)+1)]
		case 10: // lengthen
			n.content = append(n.encodeContent(), make([]byte, r.IntN(300))...)
			n.children = nil
		case 11: // nest
			c := n.encode(nil)
			for range r.IntN(40) {
				c = der.AppendValue(nil, der.Tag(n.tag), c)
			}
			n.children, n.content = nil, c
		case 12: // an integer
			if n.tag == byte(der.Integer) {
				v := der.AppendInt(nil, oddIntegers[r.IntN(len(oddIntegers))])
				n.content = v[2:]
			}
		case 13:
			n.content = MutateBytes(r, n.encodeContent())
			n.children = nil
		}
	}
	var out []byte
	for _, n := range roots {
		out = n.encode(out)
	}
	return out
}

// node is one value of a tree.
type node struct {
	tag      byte
	children []*node
	content  []byte // without children
	length   []byte // written in place of the right length, if not nil
}

// parseTree reads as much of b as is DER; wrapped DER in OCTET STRINGs is read too.
func parseTree(b []byte) (nodes []*node, ok bool) {
	r := der.NewReader(b)
	for r.More() {
		tag := r.Peek()
		v := r.Value(tag)
		if r.Fault() != 0 {
			return nil, false
		}
		n := &node{tag: byte(tag), content: v}
		if tag&0x20 != 0 || tag == der.OctetString && len(v) > 4 && v[0]&0x20 != 0 {
			if kids, ok := parseTree(v); ok {
				n.children, n.content = kids, nil
			}
		}
		nodes = append(nodes, n)
	}
	return nodes, true
}

func (n *node) encode(dst []byte) []byte {
	content := n.content
	for _, c := range n.children {
		content = c.encode(content)
	}
	if n.length != nil {
		return append(append(append(dst, n.tag), n.length...), content...)
	}
	return append(der.AppendHeader(dst, der.Tag(n.tag), len(content)), content...)
}

// all lists the nodes of a forest.
func all(nodes []*node) (list []*node) {
	for _, n := range nodes {
		list = append(list, n)
		list = append(list, all(n.children)...)
	}
	return list
}

var oddLengths = [][]byte{{0}, {0x7f}, {0x80}, {0x81, 0}, {0x81, 0xff}, {0x82, 0xff, 0xff}, {0x83, 0, 0, 1},
	{0x84, 0x7f, 0xff, 0xff, 0xff}, {0x84, 0xff, 0xff, 0xff, 0xff}, {0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {0xff}}

var oddTags = []byte{0x00, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0a, 0x0c, 0x18, 0x1b, 0x1f, 0x30, 0x31, 0x60, 0x61, 0x62, 0x63, 0x6b, 0x6d, 0x6e,
	0x79, 0x7a, 0x7e, 0x7f, 0xa0, 0xa1, 0xa2, 0xa3, 0xa4, 0xaa, 0xff}

var oddIntegers = []int64{0, -1, 1, 127, 128, 1<<31 - 1, -1 << 31, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, -1 << 63}

func (n *node) encodeContent() []byte {
	b := bytes.Clone(n.content)
	for _, c := range n.children {
		b = c.encode(b)
	}
	return b
}

// MutateBytes returns b with some octets changed, or fewer of them.
func MutateBytes(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	switch {
	case len(b) == 0:
		return []byte{byte(r.Uint32())}
	case r.IntN(3) == 0:
		return b[:r.IntN(len(b))]
	}
	for range 1 + r.IntN(4) {
		b[r.IntN(len(b))] = byte(r.Uint32())
	}
	return b
}
