package lab

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/jcmturner/gokrb5/v8/credentials"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// secrets are the keys that nothing our daemon writes may have: those of every keytab that the realm
// makes, and those that the daemon seals handles with. The zero value has none.
type secrets struct {
	mu       sync.Mutex
	names    map[string]bool
	patterns map[uint64][]pattern       // by the first bytes
	filter   [1 << hashBits / 64]uint64 // one bit for each hash of first bytes: a look here is what a byte that begins none costs
	longest  int
	leaks    []error

	services keytab.Keytab         // all that was added, which open tickets
	sessions []types.EncryptionKey // of tickets
}

// pattern is one way in which a key can be written.
type pattern struct {
	text string
	what string // never the key itself
}

// prefix is how many bytes tell one pattern from nearly all others. No key is shorter.
const prefix = 8

const hashBits = 18

func hash(window uint64) uint64 { return window * 0x9e3779b97f4a7c15 >> (64 - hashBits) }

// add is for one key.
func (s *secrets) add(name string, key []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[string(key)] || len(key) < prefix {
		return
	}
	if s.names == nil {
		s.names, s.patterns = map[string]bool{}, map[uint64][]pattern{}
	}
	s.names[string(key)] = true
	for how, text := range written(key) {
		if len(text) < prefix {
			continue
		}
		window := binary.BigEndian.Uint64([]byte(text))
		s.patterns[window] = append(s.patterns[window], pattern{text, name + ", " + how})
		h := hash(window)
		s.filter[h/64] |= 1 << (h % 64)
		s.longest = max(s.longest, len(text))
	}
}

// written is a key in each way that a program may come to write it: as it is, and as encoders and the
// verbs of fmt have it.
func written(key []byte) map[string]string {
	decimal := fmt.Sprint(key)
	quoted, ascii := strconv.Quote(string(key)), strconv.QuoteToASCII(string(key))
	list := map[string]string{
		"raw":                     string(key),
		"in hexadecimal":          fmt.Sprintf("%x", key),
		"in capital hexadecimal":  fmt.Sprintf("%X", key),
		"in hexadecimal, spaced":  fmt.Sprintf("% x", key),
		"in hexadecimal, of Go":   strings.Trim(strings.TrimPrefix(fmt.Sprintf("%#v", key), "[]byte"), "{}"),
		"in decimal":              decimal[1 : len(decimal)-1],
		"quoted":                  quoted[1 : len(quoted)-1],
		"quoted in ASCII":         ascii[1 : len(ascii)-1],
		"in hexadecimal, colons":  strings.ReplaceAll(fmt.Sprintf("% x", key), " ", ":"),
		"in capitals with colons": strings.ReplaceAll(fmt.Sprintf("% X", key), " ", ":"),
	}
	// What is before a key in the same text shifts it, and the characters at both ends have bits of
	// what is beside it.
	for shift, begin := range []int{0, 2, 3} {
		end := (shift + len(key)) * 8 / 6
		b := append(make([]byte, shift), key...)
		list[fmt.Sprintf("in base64, shifted by %d", shift)] = base64.RawStdEncoding.EncodeToString(b)[begin:end]
		list[fmt.Sprintf("in base64 for URLs, shifted by %d", shift)] = base64.RawURLEncoding.EncodeToString(b)[begin:end]
	}
	return list
}

// Secret makes a key one that nothing may have: Scan and the realm's Close look for it from now on.
func (r *Realm) Secret(name string, key []byte) { r.secrets.add(name, key) }

// addKeytab is for the keys of a keytab.
func (s *secrets) addKeytab(path string) error {
	kt, err := keytab.Load(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	s.mu.Lock()
	s.services.Entries = append(s.services.Entries, kt.Entries...)
	s.mu.Unlock()
	for _, e := range kt.Entries {
		s.add(fmt.Sprintf("the key of %s kvno %d type %d", strings.Join(e.Principal.Components, "/"), e.KVNO, e.Key.KeyType), e.Key.KeyValue)
	}
	return nil
}

// SecretsOfCache makes the keys of the tickets in a credential cache secrets, and returns how many there are.
func (r *Realm) SecretsOfCache(path string) (keys int, err error) {
	c, err := credentials.LoadCCache(path)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	for _, t := range c.GetEntries() {
		r.secrets.add("the session key of a ticket for "+t.Server.PrincipalName.PrincipalNameString(), t.Key.KeyValue)
	}
	return len(c.GetEntries()), nil
}

// inBase64 is what may be a token in a text.
var inBase64 = regexp.MustCompile(`[A-Za-z0-9+/]{64,}={0,2}`)

// ofKrb5 are the mechanism's identifier and the kind of token, in front of an AP-REQ and an AP-REP (RFC 4121 4.1).
const (
	ofKrb5 = "\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02"
	apReq  = ofKrb5 + "\x01\x00"
	apRep  = ofKrb5 + "\x02\x00"
)

// Overhear makes those keys secrets that a text has encrypted, in tokens in base64: the session key and the initiator's
// subkey of an AP-REQ that one of the realm's keytabs opens, and the acceptor's subkey of an AP-REP to one. It returns how
// many there are. The AP-REQ may come last.
func (r *Realm) Overhear(text []byte) (keys int) {
	var tokens [][]byte
	for _, t := range inBase64.FindAll(text, -1) {
		if b, err := base64.StdEncoding.AppendDecode(nil, t); err == nil {
			tokens = append(tokens, b)
		}
	}
	s := &r.secrets
	s.mu.Lock()
	services, sessions := s.services, s.sessions
	s.mu.Unlock()
	add := func(name string, key types.EncryptionKey) {
		if len(key.KeyValue) > 0 {
			s.add(name, key.KeyValue)
			keys++
		}
	}
	for _, t := range tokens {
		_, b, found := bytes.Cut(t, []byte(apReq))
		var req messages.APReq
		if !found || req.Unmarshal(b) != nil || req.Ticket.DecryptEncPart(&services, nil) != nil {
			continue
		}
		session := req.Ticket.DecryptedEncPart.Key
		if req.DecryptAuthenticator(session) == nil {
			add("the session key of a context", session)
			add("an initiator's subkey", req.Authenticator.SubKey)
			sessions = append(sessions, session)
		}
	}
	for _, t := range tokens {
		_, b, found := bytes.Cut(t, []byte(apRep))
		var rep messages.APRep
		if !found || rep.Unmarshal(b) != nil {
			continue
		}
		for _, session := range sessions {
			var part messages.EncAPRepPart
			plain, err := crypto.DecryptEncPart(rep.EncPart, session, keyusage.AP_REP_ENCPART)
			if err == nil && part.Unmarshal(plain) == nil {
				add("an acceptor's subkey", part.Subkey)
				break
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions = sessions
	return keys
}

// scan says which key is in what was written, and where; the realm's Close says it again.
func (s *secrets) scan(what string, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, found := s.find(b)
	if found == "" {
		return nil
	}
	err := fmt.Errorf("%s has a secret at byte %d: %s", what, at, found)
	s.leaks = append(s.leaks, err)
	return err
}

// find looks at each byte of all that is written in the tests, so the race detector, which has the
// lock to go by, does not look at it.
//
//go:norace
func (s *secrets) find(b []byte) (at int, found string) {
	if len(s.patterns) == 0 || len(b) < prefix {
		return 0, ""
	}
	filter := &s.filter
	window := binary.BigEndian.Uint64(b) >> 8
	for i, c := range b[prefix-1:] {
		window = window<<8 | uint64(c)
		if h := hash(window); filter[h/64]>>(h%64)&1 == 0 {
			continue
		}
		for _, p := range s.patterns[window] {
			if len(b)-i >= len(p.text) && string(b[i:i+len(p.text)]) == p.text {
				return i, p.what
			}
		}
	}
	return 0, ""
}

// Scan looks for keys of the realm in what our daemon or a command of ours has written.
func (r *Realm) Scan(what string, b []byte) error { return r.secrets.scan(what, b) }

// scanned is what of a file has been looked at: it grows while a daemon lives and lives again.
type scanned map[string]int64

// scanFile looks at what a file has got since the last time. One that is not there has nothing.
func (r *Realm) scanFile(path string, seen scanned) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() < seen[path] { // another file
		seen[path] = 0
	}
	r.secrets.mu.Lock()
	overlap := int64(r.secrets.longest)
	r.secrets.mu.Unlock()
	const piece = 1 << 20
	for at := seen[path]; at < st.Size(); at += piece {
		from := max(0, at-overlap)
		b := make([]byte, min(at+piece, st.Size())-from)
		n, err := f.ReadAt(b, from)
		if err != nil && n == 0 {
			return err
		}
		if err := r.Scan(path, b[:n]); err != nil {
			return err
		}
		seen[path] = at + int64(n) - (at - from)
	}
	return nil
}

var auditLine = regexp.MustCompile(`(?m)^[ \t]*audit[ \t]*=[ \t]*(/.*?)[ \t]*$`)

// sealKeys makes the keys that our daemon seals handles with secrets: keytab/seal/file.go has the
// format.
func (d *Daemon) sealKeys() {
	b, _ := os.ReadFile(filepath.Join(d.Options.Dir, "state", "handle.key")) // another version of the daemon may have none
	const header, record, key = 16, 48, 32
	for ; len(b) >= header+record; b = b[record:] {
		d.realm.secrets.add("a key of handle.key", b[header+record-key:header+record])
	}
}

// scan looks at all that our daemon has written: its state, its log, and its audit log.
func (d *Daemon) scan() error {
	if d.Kind != "ours" {
		return nil
	}
	d.sealKeys()
	err := errors.Join(d.scanState(), d.realm.scanFile(d.Log, d.scanned))
	configs, _ := filepath.Glob(filepath.Join(d.Options.Dir, "conf.d", "*.conf"))
	for _, c := range append(configs, filepath.Join(d.Options.Dir, "gssproxy.conf")) {
		text, _ := os.ReadFile(c)
		for _, m := range auditLine.FindAllSubmatch(text, -1) {
			files, _ := filepath.Glob(string(m[1]) + "*") // those that were rotated, too
			for _, f := range files {
				err = errors.Join(err, d.realm.scanFile(f, d.scanned))
			}
		}
	}
	return err
}
