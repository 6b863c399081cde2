package negotiate

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"gssproxyd/interposer"
	"gssproxyd/mech"
)

// Session remembers clients from one request to the next, for Authenticator.Session. CookieSession
// is one; a program that keeps its sessions in a store of its own has another.
//
// Both methods are called by many goroutines.
type Session interface {
	// Load returns the client that was saved for the one who makes a request: nil, and no error, if
	// there is none, or none any more. It must not return whom it cannot be sure of, nor anybody
	// after Peer.Expires. An error is logged, and the client is asked to authenticate.
	Load(r *http.Request) (*interposer.Peer, error)

	// Save begins a session for a client that has just authenticated, which replaces one that there
	// may be: its identifier has to be a new one, not one that came with the request. An error is
	// logged, and the client has to authenticate again with its next request; so a former session,
	// which may be somebody else's, has to be over then, too.
	Save(w http.ResponseWriter, r *http.Request, p *interposer.Peer) error
}

// CookieSession is a Session in a cookie that is signed and not encrypted: the server keeps nothing
// but a key, which all servers of a site may share. The cookie is sent by https only, is out of
// reach of scripts, and does not come with what another site has a browser send, but for the
// following of a link (Secure, HttpOnly, SameSite=Lax). One that is altered, over, or signed with
// another key counts as none.
//
// A client of a session has its name, its flags, and the attributes that the KDC has signed, such as
// interposer.AuthIndicator. It has no PAC, which is too long for a cookie, and so no group SIDs; and
// it has no Peer.Delegated, even with Authenticator.Delegate: a credential does not leave the
// server. A program that needs either on every request keeps clients in a Session of its own, in
// memory, under a random identifier, as in the example of Session.
//
// Whoever has the cookie is the client, until the session is over: it cannot be taken back one by
// one, only all with the key. Nor is it bound to the TLS channel: mech.FlagChannelBound says that
// the authentication was.
type CookieSession struct {
	// Keys are at least 32 random bytes each (crypto/rand). The first one signs and all of them
	// verify: to exchange a key put the new one before it, and take the old one out after MaxAge.
	Keys [][]byte `json:"-"`

	// MaxAge is how long a session lasts at most; 0: 8 hours. None lasts longer than the context
	// that it began with, which is as long as the client's ticket.
	MaxAge time.Duration

	// Name is the cookie's. Empty: "__Host-negotiate", which browsers take from this host alone, not
	// from others of its domain. Applications that share a host have different names.
	Name string
}

const (
	minKey        = 32
	defaultName   = "__Host-negotiate"
	defaultMaxAge = 8 * time.Hour

	// maxCookie is how long a cookie's value may be: browsers take 4096 bytes, with the name and
	// what else is in Set-Cookie.
	maxCookie = 3800
)

var _ Session = (*CookieSession)(nil)

// check returns what is wrong with the fields.
func (c *CookieSession) check() error {
	switch {
	case c == nil:
		return errors.New("negotiate: the CookieSession is nil: leave Authenticator.Session unset for no sessions")
	case len(c.Keys) == 0:
		return fmt.Errorf("negotiate: CookieSession.Keys is empty: it takes at least one key, of %d random bytes", minKey)
	case c.MaxAge < 0:
		return fmt.Errorf("negotiate: CookieSession.MaxAge is %v: it has to be positive, or 0 for %v", c.MaxAge, defaultMaxAge)
	}
	for i, key := range c.Keys {
		if len(key) < minKey {
			return fmt.Errorf("negotiate: CookieSession.Keys[%d] has %d bytes: it takes at least %d random ones", i, len(key), minKey)
		}
		if len(bytes.Trim(key, "\x00")) == 0 {
			return fmt.Errorf("negotiate: CookieSession.Keys[%d] is all zeros, which everybody can guess: fill it with crypto/rand", i)
		}
	}
	if err := (&http.Cookie{Name: c.name(), Value: "x"}).Valid(); err != nil {
		return fmt.Errorf("negotiate: CookieSession.Name: %w", err)
	}
	return nil
}

func (c *CookieSession) name() string {
	if c.Name == "" {
		return defaultName
	}
	return c.Name
}

// String tells the cookie's name. The keys are secret.
func (c CookieSession) String() string { return "sessions in the cookie " + c.name() }

// Format writes what String returns, whatever the verb.
func (c CookieSession) Format(f fmt.State, _ rune) { io.WriteString(f, c.String()) }

// Load implements Session.
func (c *CookieSession) Load(r *http.Request) (*interposer.Peer, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	cookie, err := r.Cookie(c.name())
	if err != nil || len(cookie.Value) > maxCookie {
		return nil, nil
	}
	signed, err := base64.RawURLEncoding.Strict().DecodeString(cookie.Value)
	if err != nil || len(signed) < sha256.Size {
		return nil, nil
	}
	text, sum := signed[:len(signed)-sha256.Size], signed[len(signed)-sha256.Size:]
	for _, key := range c.Keys {
		if !hmac.Equal(sum, c.sign(key, text)) {
			continue
		}
		if p, ok := decode(text); ok && p.Expires.After(time.Now()) {
			return p, nil
		}
		break
	}
	return nil, nil
}

// Save implements Session. A client with too many attributes for a cookie is an error, and has none
// then.
func (c *CookieSession) Save(w http.ResponseWriter, _ *http.Request, p *interposer.Peer) error {
	if err := c.check(); err != nil {
		return err
	}
	if p == nil {
		c.set(w, "", -1)
		return errors.New("negotiate: there is no client to be saved")
	}
	age := c.MaxAge
	if age == 0 {
		age = defaultMaxAge
	}
	end := time.Now().Add(age)
	if !p.Expires.IsZero() && p.Expires.Before(end) {
		end = p.Expires
	}
	text := encode(p, end)
	n := base64.RawURLEncoding.EncodedLen(len(text) + sha256.Size)
	if n > maxCookie {
		c.set(w, "", -1)
		return fmt.Errorf("negotiate: the client takes a cookie of %d bytes, and %d is what browsers have room for", n, maxCookie)
	}
	c.set(w, base64.RawURLEncoding.EncodeToString(append(text, c.sign(c.Keys[0], text)...)), 0)
	return nil
}

// set sets the cookie; with a negative age it is taken away, with 0 the browser keeps it until it
// ends.
func (c *CookieSession) set(w http.ResponseWriter, value string, age int) {
	http.SetCookie(w, &http.Cookie{
		Name: c.name(), Value: value, MaxAge: age,
		Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}

// without returns a copy of a request's header without the cookie: whoever has it is the client, so
// a handler that passes requests on must not pass it on. Other cookies stay as they are.
func (c *CookieSession) without(h http.Header) http.Header {
	clean := maps.Clone(h)
	delete(clean, "Cookie")
	for _, line := range h["Cookie"] {
		list := slices.DeleteFunc(strings.Split(line, ";"), func(cookie string) bool {
			name, _, _ := strings.Cut(cookie, "=")
			return strings.TrimSpace(name) == c.name()
		})
		if len(list) > 0 {
			clean.Add("Cookie", strings.TrimSpace(strings.Join(list, ";")))
		}
	}
	return clean
}

// sign returns the HMAC of text for a cookie of this name.
func (c *CookieSession) sign(key, text []byte) []byte {
	h := hmac.New(sha256.New, key)
	io.WriteString(h, "gssproxy negotiate session\x00"+c.name()+"\x00")
	h.Write(text)
	return h.Sum(nil)
}

// What is signed: the version, the end in seconds since 1970, the flags, and then byte strings with
// their lengths: the name, its type, the exported name, and the name and the value of each
// attribute.
const version = 1

const fixedLen = 1 + 8 + 4

func encode(p *interposer.Peer, end time.Time) []byte {
	b := []byte{version}
	b = binary.BigEndian.AppendUint64(b, uint64(end.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(p.Flags))
	b = appendBytes(b, p.Name.Display)
	b = appendBytes(b, string(p.Name.Type))
	b = appendBytes(b, string(p.Name.Exported))
	for _, a := range p.Attributes {
		if a.Authenticated && !strings.HasPrefix(a.Name, interposer.PAC) {
			b = appendBytes(b, a.Name)
			b = appendBytes(b, string(a.Value))
		}
	}
	return b
}

// decode is the inverse of encode; ok is false for what encode does not return.
func decode(b []byte) (p *interposer.Peer, ok bool) {
	if len(b) < fixedLen || b[0] != version {
		return nil, false
	}
	p = &interposer.Peer{
		Expires: time.Unix(int64(binary.BigEndian.Uint64(b[1:])), 0),
		Flags:   interposer.Flags(binary.BigEndian.Uint32(b[9:])),
	}
	rest := list(b[fixedLen:])
	p.Name.Display, p.Name.Type = string(rest.next()), mech.OID(rest.next())
	if exported := rest.next(); len(exported) > 0 {
		p.Name.Exported = exported
	}
	for len(rest) > 0 {
		p.Attributes = append(p.Attributes, interposer.Attribute{Name: string(rest.next()), Value: rest.next(), Authenticated: true})
	}
	return p, rest != nil
}

func appendBytes(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// list is byte strings with their lengths; nil after one that is cut short.
type list []byte

func (l *list) next() []byte {
	size, n := binary.Uvarint(*l)
	if n <= 0 || size > uint64(len(*l)-n) {
		*l = nil
		return nil
	}
	value := (*l)[n : n+int(size) : n+int(size)]
	*l = (*l)[n+int(size):]
	return value
}
