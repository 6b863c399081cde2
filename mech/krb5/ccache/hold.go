package ccache

import (
	"context"
	"fmt"
	"slices"
	"time"

	"gssproxyd/mech/krb5"
)

// Payer is charged for the memory and the time that are taken to read a cache. It is safe for
// concurrent use.
type Payer interface {
	// Take charges for n bytes. An error, which says who has to pay and why he cannot, ends the
	// reading.
	Take(n int) error
	// Give gives n bytes back.
	Give(n int)
	// Turn waits until a file of so many bytes, which is open and locked, may be read, or returns
	// why it may not. end is called after that.
	Turn(ctx context.Context, size int64) (end func(), err error)
}

// Reading is what a cache held when it was read. The credentials are the caller's.
type Reading struct {
	Client      krb5.Principal
	Credentials []*krb5.Credential
	Stamp       Stamp // of what was read, the zero value where [StampOf] has none
	Charged     int   // bytes, which the caller gives back to the payer when it drops the credentials
}

// Read reads a cache that the resolver has opened, in one go: principal and credentials are of the
// same moment as far as the kind knows such. It holds no more than 1 MiB: of a larger cache what is
// superseded or has expired is left out first, and then what is oldest, but for ticket-granting
// tickets, settings and the evidence tickets of a service that acts for a user. The memory is
// charged to the Payer while it is taken. As with [Cache.Credentials] the entries before damage
// come with the error.
func (r *Resolver) Read(ctx context.Context, c Cache) (*Reading, error) {
	h := r.hold()
	var got *Reading
	var err error
	if one, ok := c.(interface {
		read(context.Context, *hold) (*Reading, error)
	}); ok {
		got, err = one.read(ctx, h)
	} else {
		got, err = r.read(ctx, c, h)
	}
	if got == nil {
		h.drop()
		return nil, err
	}
	got.Credentials, got.Charged = h.credentials(), h.weight
	return got, err
}

// read is Read for the kinds that have no shorter way.
func (r *Resolver) read(ctx context.Context, c Cache, h *hold) (*Reading, error) {
	client, err := c.Principal(ctx)
	if err != nil {
		return nil, err
	}
	creds, err := c.Credentials(ctx)
	for i, cred := range creds {
		if err := h.add(cred); err != nil {
			destroy(creds[i+1:])
			return nil, &Error{Name: c.Name(), Code: ErrQuota, Err: err}
		}
	}
	if err != nil && creds == nil {
		return nil, err
	}
	return &Reading{Client: client}, err
}

func (r *Resolver) take(n int) error {
	if r.Payer == nil || n == 0 {
		return nil
	}
	return r.Payer.Take(n)
}

func (r *Resolver) turn(ctx context.Context, size int64) (end func(), err error) {
	if r.Payer == nil {
		return func() {}, nil
	}
	return r.Payer.Turn(ctx, size)
}

func (r *Resolver) give(n int) {
	if r.Payer != nil && n > 0 {
		r.Payer.Give(n)
	}
}

// maxHeld is how much of a cache is held, and how large one becomes that is written here. Who asks
// for ever new tickets makes a cache grow by megabytes a minute. What is superseded or has expired
// is left out as soon as it may be much.
const (
	maxHeld  = 1 << 20
	tidyFrom = 64 << 10
)

var errFull = fmt.Errorf("more than %d bytes of tickets that cannot be left out; get new credentials", maxHeld)

// hold holds the credentials of one cache, within limits and charged.
type hold struct {
	r      *Resolver
	now    int64
	held   []held // oldest first
	weight int
	tidied int // weight after the last time that something was left out
	// left was left out, and lends its memory to the next ones: no more than was charged before, until
	// the reading ends, and large caches are read in turn.
	left []*krb5.Credential
}

type held struct {
	*krb5.Credential
	weight int
}

func (r *Resolver) hold() *hold { return &hold{r: r, now: time.Now().Unix()} }

// add adds a credential, which is the hold's from then on, also if it fails.
func (h *hold) add(c *krb5.Credential) error {
	n := weight(c)
	if err := h.r.take(n); err != nil {
		c.Destroy()
		return err
	}
	h.held, h.weight = append(h.held, held{Credential: c, weight: n}), h.weight+n
	if h.weight > min(maxHeld, max(tidyFrom, 2*h.tidied)) {
		h.fit()
		h.tidied = h.weight
	}
	if h.weight > maxHeld {
		return errFull
	}
	return nil
}

// fit leaves out what can be left out.
func (h *hold) fit() {
	was := h.weight
	h.held, h.weight = fit(h.held, h.weight, h.now, h.gone)
	h.r.give(was - h.weight)
}

// gone destroys what is not held.
func (h *hold) gone(c *krb5.Credential) {
	c.Destroy()
	h.left = append(h.left, c)
}

// unused returns a destroyed credential for its memory, nil if there is none.
func (h *hold) unused() *krb5.Credential {
	n := len(h.left)
	if n == 0 {
		return nil
	}
	c := h.left[n-1]
	h.left = h.left[:n-1]
	return c
}

func (h *hold) credentials() []*krb5.Credential {
	if len(h.held) == 0 {
		return nil
	}
	creds := make([]*krb5.Credential, len(h.held))
	for i, one := range h.held {
		creds[i] = one.Credential
	}
	return creds
}

// forget gives back what was charged; the credentials are somebody else's now.
func (h *hold) forget() {
	h.r.give(h.weight)
	h.held, h.weight = nil, 0
}

// drop destroys the credentials and gives back what was charged.
func (h *hold) drop() {
	for _, one := range h.held {
		one.Destroy()
	}
	h.forget()
}

// weight is about the memory that a credential takes: an encoded element may be smaller than what
// refers to it.
func weight(c *krb5.Credential) int {
	elements := len(c.Client.Components) + len(c.Server.Components) + len(c.Addresses) + len(c.AuthData)
	return size(c) + 512 + 32*elements
}

// fitting returns what stays of credentials to be written, and whether that is little enough.
func fitting(creds []*krb5.Credential, now int64) ([]*krb5.Credential, bool) {
	h := hold{now: now}
	for _, c := range creds {
		n := weight(c)
		h.held, h.weight = append(h.held, held{Credential: c, weight: n}), h.weight+n
	}
	if h.weight <= maxHeld {
		return creds, true
	}
	h.held, h.weight = fit(h.held, h.weight, now, func(*krb5.Credential) {})
	return h.credentials(), h.weight <= maxHeld
}

// fit returns what stays of credentials, oldest first, of that weight together, and its weight; it
// calls gone for the others. What is superseded by a later one that lives as long goes, and what
// has expired; if it was more than maxHeld, what is oldest too, until a quarter is free: making
// room one by one costs too much. Ticket-granting tickets and settings stay, and the evidence
// tickets that cannot be had again without the user; of those too only the latest. The newest of
// all stays. There may be too much left.
func fit(all []held, total int, now int64, gone func(*krb5.Credential)) ([]held, int) {
	full := total > maxHeld
	impersonator := ""
	for _, c := range all {
		if IsConfig(c.Server) && len(c.Server.Components) == 2 && c.Server.Components[1] == ProxyImpersonator {
			impersonator = string(c.Ticket)
		}
	}
	stays := func(c held) bool {
		return IsConfig(c.Server) || len(c.Server.Components) == 2 && c.Server.Components[0] == "krbtgt" ||
			impersonator != "" && len(c.SecondTicket) == 0 && c.Server.String() == impersonator
	}
	left := make([]bool, len(all))
	leave := func(i int) {
		left[i] = true
		total -= all[i].weight
	}
	later := make(map[string]uint32, len(all)) // when the one that lives longest of those behind ends
	var id []byte
	for i, c := range slices.Backward(all) {
		id = appendIdentity(id[:0], c.Credential)
		if end, ok := later[string(id)]; ok && end >= c.EndTime || expired(c.Credential, now) && !stays(c) {
			leave(i)
		} else {
			later[string(id)] = c.EndTime
		}
	}
	for i := 0; full && i < len(all)-1 && total > maxHeld/4*3; i++ {
		if !left[i] && !stays(all[i]) {
			leave(i)
		}
	}
	stay := all[:0]
	for i, c := range all {
		if left[i] {
			gone(c.Credential)
		} else {
			stay = append(stay, c)
		}
	}
	clear(all[len(stay):])
	return stay, total
}

// appendIdentity appends what is equal for two credentials if same reports so.
func appendIdentity(b []byte, c *krb5.Credential) []byte {
	one := krb5.Credential{Client: c.Client, Server: c.Server, IsSKey: c.IsSKey, SecondTicket: c.SecondTicket, AuthData: c.AuthData}
	one.Client.Type, one.Server.Type = 0, 0
	if !IsConfig(c.Server) {
		one.KeyType = c.KeyType
	}
	return appendCredential(b, version, &one)
}
