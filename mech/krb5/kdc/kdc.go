// Package kdc is the client of a Kerberos KDC: it gets tickets, each kind of exchange in a file of
// its own.
//
//   - [Client.Login] is the AS exchange (RFC 4120 section 3.1), with pre-authentication.
//   - [Client.Ticket] is the TGS exchange (RFC 4120 section 3.3) with referrals (RFC 6806) and chains of realms.
//   - [Client.Renew] and [Client.Forward] exchange a ticket for another of its kind.
//   - [Client.S4U2Self] and [Client.S4U2Proxy] act for a user who is not there (MS-SFU).
//
// What a KDC answers is as hostile as any other input until a key has opened it: it is limited in
// size before anything is allocated, read with package der, and compared with what was asked. Every
// wait ends with the caller's context, at the latest after [Client.Timeout] for each exchange, and
// no goroutine outlives the call that started it.
//
// What a KDC has just refused it is not asked again (failures.go), and who asks may have to wait,
// or not be let in ([Admission]): callers choose what is asked, and how often.
//
// It is one package, of more lines than others, because all exchanges share what a [Client]
// remembers of KDCs: who answers, how far their clocks are off, and what they refused.
//
// Errors are of type [*mech.Error], with MIT krb5's minor codes.
package kdc

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"gssproxyd/mech/krb5"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/krb5/krb5conf"
	"gssproxyd/mech/krb5/wire"
)

// Client asks KDCs. Its fields are set before the first use; then it is safe for concurrent use. It
// remembers, per realm, which KDC answered last and how far the realm's clock is from ours.
type Client struct {
	Conf *krb5conf.Config

	// Now is the local clock; nil is time.Now.
	Now func() time.Time
	// Dial opens a connection to "host:port", the network being "udp" or "tcp". It must give up
	// when ctx ends. Nil is that of a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Resolver finds the addresses of KDCs that are configured by name, and the KDCs themselves
	// where [realms] has none, unless dns_lookup_kdc is off; nil is net.DefaultResolver.
	Resolver *net.Resolver
	// Timeout bounds one exchange with the KDCs of a realm, over all attempts; 0 is request_timeout
	// of krb5.conf, or ten seconds.
	Timeout time.Duration
	// Admission decides what may be done now; nil permits all.
	Admission Admission
	// Log is told of KDCs that do not answer; nil tells nobody.
	Log *slog.Logger
	// Trace is told each step of an exchange, as one line for people: what libkrb5 writes where
	// KRB5_TRACE says. Nil tells nobody. Lines never have keys or tickets in them.
	Trace func(format string, args ...any)

	mu       sync.Mutex
	realms   map[string]*realmState
	found    map[foundKey]found      // in DNS
	uses     uint64                  // of realms
	failures map[failureKey]*failure // what KDCs refused
	trials   map[failureKey]*trial   // logins that others wait for
}

// realmState is what a Client remembers of a realm.
type realmState struct {
	good   target // the KDC that answered last
	until  time.Time
	offset time.Duration // the realm's clock minus ours
	used   uint64        // when, as Client.uses counts
}

// maxRealms bounds what is remembered: names of realms come from tickets and from KDCs.
const maxRealms = 64

// realm returns the state of a realm, made if there is none: the one that was not used for the
// longest time makes room, rather one that krb5.conf does not name: users can have as many realms
// as they like. c.mu is held.
func (c *Client) realm(name string) *realmState {
	s := c.realms[name]
	if s == nil {
		if c.realms == nil {
			c.realms = make(map[string]*realmState)
		}
		if len(c.realms) >= maxRealms {
			oldest, used, own := "", c.uses, true
			for other, s := range c.realms {
				if is := c.own(other); own && !is || own == is && s.used <= used {
					oldest, used, own = other, s.used, is
				}
			}
			delete(c.realms, oldest)
		}
		s = new(realmState)
		c.realms[name] = s
	}
	c.uses++
	s.used = c.uses
	return s
}

// own reports whether krb5.conf names a realm as the host's, or has KDCs of it.
func (c *Client) own(realm string) bool {
	return c.Conf != nil && realm == c.Conf.DefaultRealm || len(c.lines(realm, "kdc")) > 0
}

// Offset returns what must be added to the local clock to get that of a realm's KDCs, as far as it
// is known: replies that verified tell it, and nothing else does. It stays 0 when kdc_timesync is
// off.
func (c *Client) Offset(realm string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.realms[realm]; s != nil {
		return s.offset
	}
	return 0
}

// setOffset remembers the realm's time at the local time now. A second is what times in messages
// are accurate to, and how long an exchange may take.
func (c *Client) setOffset(realm string, theirs uint32, now time.Time) {
	if !c.timesync() {
		return
	}
	offset := time.Unix(int64(theirs), 0).Sub(now).Truncate(time.Second)
	if offset.Abs() <= 2*time.Second {
		offset = 0
	}
	c.mu.Lock()
	c.realm(realm).offset = offset
	c.mu.Unlock()
}

// now returns the realm's time.
func (c *Client) now(realm string) time.Time { return c.clock().Add(c.Offset(realm)) }

func (c *Client) clock() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// The settings of [libdefaults] that matter here and that krb5conf has no field for. A value that
// cannot be read counts as not set, as in MIT krb5; realm sections of [libdefaults] are not looked
// at.

func (c *Client) setting(key string) (string, bool) { return c.Conf.Get("libdefaults", key) }

func (c *Client) flag(key string) bool {
	v, _ := c.setting(key)
	return isTrue(v)
}

func isTrue(v string) bool {
	yes, _ := krb5conf.ParseBool(v)
	return yes
}

func (c *Client) number(key string, def int) int {
	v, _ := c.setting(key)
	if n, err := strconv.Atoi(v); err == nil {
		return n
	}
	return def
}

func (c *Client) duration(key string, def time.Duration) time.Duration {
	v, _ := c.setting(key)
	if d, ok := krb5conf.ParseDuration(v); ok {
		return d
	}
	return def
}

func (c *Client) timesync() bool { return c.number("kdc_timesync", 1) != 0 }

func (c *Client) clockskew() time.Duration {
	if c.Conf == nil {
		return 5 * time.Minute
	}
	return c.Conf.Clockskew
}

// tktEnctypes returns the types to ask the AS for.
func (c *Client) tktEnctypes() []etype.ID {
	if c.Conf == nil || c.Conf.TktEnctypes == nil {
		return c.enctypes(nil)
	}
	return c.Conf.TktEnctypes
}

// tgsEnctypes returns the types to ask the TGS for: want, as far as it is permitted, or what
// krb5.conf has.
func (c *Client) tgsEnctypes(want []etype.ID) []etype.ID {
	if c.Conf == nil || c.Conf.TGSEnctypes == nil || want != nil {
		return c.enctypes(want)
	}
	return c.Conf.TGSEnctypes
}

// enctypes returns what is permitted of want, or everything.
func (c *Client) enctypes(want []etype.ID) []etype.ID {
	permitted := krb5conf.DefaultEnctypes()
	if c.Conf != nil && c.Conf.PermittedEnctypes != nil {
		permitted = c.Conf.PermittedEnctypes
	}
	if want == nil {
		return permitted
	}
	var list []etype.ID
	for _, w := range want {
		if slices.Contains(permitted, w) && !slices.Contains(list, w) {
			list = append(list, w)
		}
	}
	return list
}

// TicketStore holds the tickets of one user: a credential cache. [Client.Ticket] and the others
// look for what they need there before they ask a KDC, and leave there what can be used again.
type TicketStore interface {
	// Find returns copies of those that match accepts, oldest first. What can still be read of a
	// damaged store comes with an error. match must not keep or change what it is given.
	Find(ctx context.Context, match func(*krb5.Credential) bool) ([]*krb5.Credential, error)
	// Update adds copies of credentials; drop is nil. Failing to is not a failure of the exchange:
	// the ticket is good nevertheless.
	Update(ctx context.Context, drop func(*krb5.Credential) bool, add ...*krb5.Credential) error
}

// What callers ask for, or look at in a ticket.
const (
	OptForwardable = wire.FlagForwardable
	OptRenewable   = wire.FlagRenewable
	FlagInvalid    = wire.FlagInvalid
)

// inherited are the flags of a ticket that are asked for again in a request made with it.
const inherited = wire.FlagForwardable | wire.FlagProxiable | wire.FlagAllowPostdate | wire.FlagRenewable

// TGS returns the name of a realm's ticket-granting service as issued by another (or the same)
// realm: krbtgt/REALM@ISSUER.
func TGS(realm, issuer string) krb5.Principal {
	return krb5.Principal{Realm: issuer, Components: []string{tgsName, realm}, Type: krb5.NTSrvInst}
}

const tgsName = "krbtgt"

// isTGS reports a name of the form krbtgt/REALM.
func isTGS(p krb5.Principal) bool { return len(p.Components) == 2 && p.Components[0] == tgsName }

// sameName compares two names but not their realms.
func sameName(a, b krb5.Principal) bool {
	a.Realm = b.Realm
	return a.Equal(b)
}

// nonce returns a random number of 31 bits: some implementations read it as signed.
func nonce() uint32 {
	var b [4]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint32(b[:]) &^ (1 << 31)
}

// unix returns t as messages carry it.
func unix(t time.Time) uint32 {
	switch s := t.Unix(); {
	case s < 0:
		return 0
	case s > 1<<32-1:
		return 1<<32 - 1
	default:
		return uint32(s)
	}
}
