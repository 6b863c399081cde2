package stores

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"

	"gssproxyd/gssproxyd/nss"
	"gssproxyd/keystore/delivery"
)

// HelperArg is the argument with which this program is started as the helper.
const HelperArg = nss.StoreHelperArg

// The conversation over a pair of sockets: messages of a length (32 bits, big-endian) and so many bytes
// of JSON. The daemon sends orders, the helper reports. Each report about a store is answered by an
// order for it, which the helper waits for before its next one. An order has what is new since the one
// before, so that a host with many entries does not hear of all of them with each.

// order says what there is to ask of a store from now on.
type order struct {
	Store string   `json:"store"`
	How   *how     `json:"how,omitempty"`  // if that is new
	Have  []have   `json:"have,omitempty"` // entries that are new, or of which something is
	Gone  []string `json:"gone,omitempty"` // entries that the host is not to have any more

	Answers uint64 `json:"answers"` // how many reports about the store are answered by now
}

// how says how a store is to be asked.
type how struct {
	URLs []string `json:"urls,omitempty"` // none: not at all
	files
	Wrong string `json:"wrong,omitempty"` // with one of these: the store is not asked until the next one
	Hint  string `json:"hint,omitempty"`  // what to do about that
}

func (h *how) same(other *how) bool {
	return slices.Equal(h.URLs, other.URLs) && h.files.same(&other.files) && h.Wrong == other.Wrong
}

// have is an entry that the host is to have, and of which mark it has it.
type have struct {
	Principal string `json:"principal"`
	mark
	Refused bool `json:"refused,omitempty"` // it was seen, and is not in force

	// When a previous key of the entry has opened a ticket last, as RFC 3339 has it, and which one.
	PreviousUsed string `json:"previous_used,omitempty"`
	PreviousKVNO uint32 `json:"previous_kvno,omitempty"`
}

// report says what has come of a store. One of these is not empty.
type report struct {
	Store    string   `json:"store"`
	Delivery []byte   `json:"delivery,omitempty"` // of many, the next one
	Contact  *contact `json:"contact,omitempty"`
	User     string   `json:"user,omitempty"` // before all else: it could not become another user, and is root or somebody
}

// contact says how asking a store has ended.
type contact struct {
	URL     string          `json:"url"`
	Error   string          `json:"error,omitempty"`   // empty: it has answered
	Hint    string          `json:"hint,omitempty"`    // what to do about that
	Orderly bool            `json:"orderly,omitempty"` // it has said that it ends, or has ended the connection
	Refused []refusedByThem `json:"refused,omitempty"`
}

// refusedByThem is an entry that the store does not send, in its own words.
type refusedByThem struct {
	Principal string `json:"principal"`
	Reason    string `json:"reason"`
	Text      string `json:"text"`
	Hint      string `json:"hint"`
}

const (
	userRoot  = "root"
	userOther = "other"
)

// maxMessage bounds a message: a delivery, or the files of a store and its entries.
const maxMessage = 4 * delivery.MaxLen

func writeMessage(w io.Writer, m any) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	defer clear(b) // an order has a private key in it
	if len(b) > maxMessage {
		return fmt.Errorf("a message has %d bytes, at most %d are possible", len(b), maxMessage)
	}
	framed := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...)
	defer clear(framed)
	_, err = w.Write(framed)
	return err
}

func readMessage(r io.Reader, m any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return fmt.Errorf("a message has %d bytes, at most %d are possible", n, maxMessage)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	defer clear(b)
	return json.Unmarshal(b, m)
}

// StartFunc starts a helper with its end of the conversation, which stays the caller's to close.
type StartFunc func(conversation *os.File) (nss.Process, error)

// StartChild starts a helper as a child of this process.
func StartChild(conversation *os.File) (nss.Process, error) {
	return nss.StartProgram(HelperArg, conversation, conversation)
}
