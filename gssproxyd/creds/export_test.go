package creds

import (
	"context"
	"encoding/binary"
	"fmt"

	"gssproxyd/conf"
	"gssproxyd/keytab"
	"gssproxyd/keytab/seal"
	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/ccache"
)

// What tests that go through the procedures look at inside.

// MemoryOf is where a service keeps tickets.
func MemoryOf(s *Service) *ccache.Memory { return s.memory }

// KeytabOf is the keytab that a service accepts with.
func KeytabOf(s *Service) *keytab.Keytab { return s.fixed.keytab }

// Exchanges is how many exchanges with KDCs are under way.
func Exchanges(s *Service) int {
	s.logins.mu.Lock()
	defer s.logins.mu.Unlock()
	return len(s.logins.running)
}

// SealFormer is a handle as an earlier version made them.
func (c *Caller) SealFormer() []byte {
	plain, _ := binary.Append(nil, binary.BigEndian, &handleHead{Version: handleVersion - 1, Own: true})
	return c.Service.box.Seal(nil, append(plain, make([]byte, 36)...), "", seal.KindCred)
}

// WantedOf is the name that an acceptor's handle was asked for with.
func WantedOf(h *Handle) string { return h.wanted }

// Granted is the ticket-granting ticket that a call that names nobody initiates with.
func (c *Caller) Granted(ctx context.Context) (*krb5.Credential, error) {
	t, err := c.target(nil, conf.UsageInitiate)
	if err != nil {
		return nil, err
	}
	cr, err := c.acquire(ctx, &t)
	if err != nil {
		return nil, err
	}
	return TGT(ctx, cr.cache)
}

// TGT is the ticket-granting ticket of a cache.
func TGT(ctx context.Context, cache ccache.Cache) (*krb5.Credential, error) {
	tickets, err := cache.Credentials(ctx)
	for _, ticket := range tickets {
		if isTGT(ticket) {
			return ticket, nil
		}
	}
	return nil, fmt.Errorf("no ticket-granting ticket in %s: %v", cache.Name(), err)
}

// Read reads a cache.
func (c *Caller) Read(ctx context.Context, cache ccache.Cache, uid uint32) (*ccache.Reading, error) {
	return c.read(ctx, cache, uid)
}

// OpenCredential opens the credential of a handle.
func (c *Caller) OpenCredential(ctx context.Context, h *Handle) (*Credential, error) {
	return c.open(ctx, h)
}
