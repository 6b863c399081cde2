package rpc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"

	"gssproxyd/xdr"
)

// AppendMark appends the mark of a record of n bytes in one fragment.
func AppendMark(b []byte, n int) []byte { return xdr.AppendUint32(b, lastFragment|uint32(n)) }

// ReadRecord reads one record into memory of its own, at most [MaxRecord] bytes and 1,024 fragments.
// The error wraps [ErrNoAnswer] if the connection ends before the record does.
func ReadRecord(in *bufio.Reader) ([]byte, error) {
	var record []byte
	for range maxFragments {
		mark, err := in.Peek(markLen)
		if err != nil {
			if len(mark) == 0 && (err == io.EOF || errors.Is(err, syscall.ECONNRESET)) {
				return nil, ErrNoAnswer
			}
			return nil, err
		}
		word := binary.BigEndian.Uint32(mark)
		in.Discard(markLen)
		n := int(word &^ lastFragment)
		if n > MaxRecord-len(record) {
			return nil, fmt.Errorf("the reply: %w", errTooLong)
		}
		record = slices.Grow(record, n)
		fragment := record[len(record) : len(record)+n]
		if _, err := io.ReadFull(in, fragment); err != nil {
			return nil, fmt.Errorf("%w: the reply is not complete", ErrNoAnswer)
		}
		record = record[:len(record)+n]
		if word&lastFragment != 0 {
			return record, nil
		}
	}
	return nil, fmt.Errorf("the reply: %w", errFragments)
}

// ParseReply reads the header of the reply to the call xid, and returns what follows it; both alias
// the record. A header that says something else than SUCCESS is no error.
func ParseReply(record []byte, xid uint32) (reply *xdr.Reply, results []byte, err error) {
	var d xdr.Decoder
	d.Reset(record)
	var h xdr.ReplyHeader
	h.Decode(&d)
	switch {
	case d.Err() != nil:
		return nil, nil, fmt.Errorf("the reply has no header: %w", d.Err())
	case h.MsgType != xdr.MsgReply:
		return nil, nil, errors.New("the server sent something else than a reply")
	case h.XID != xid:
		return nil, nil, fmt.Errorf("the reply is to call %d, not to %d", h.XID, xid)
	}
	return &h.Reply, record[d.Offset():], nil
}
