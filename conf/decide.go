package conf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

// Decision is the answer of [Config.Decide].
type Decision struct {
	Service *Service  // that the peer belongs to; nil if it is refused
	Reason  reason.ID // of the refusal; "" if there is a service

	near   *Service // of a refusal, the service the reason is about; may be nil
	conf   *Config
	peer   *peer.Info
	socket string
}

// Decide finds the first service that admits the peer by all of its rules (see [rules]) and is
// reached through socket. It looks at nothing but its arguments, and does not allocate when a
// service matches.
//
// A refusal is explained by the service that came nearest: one on this socket that admits the uid;
// else one that would admit the peer on another socket; else the reason is the uid.
//
// The Decision keeps p for its texts.
func (c *Config) Decide(p *peer.Info, socket string) Decision {
	d := Decision{conf: c, peer: p, socket: socket}
	if strayed(p) {
		d.Reason = reason.PodMismatch
		return d
	}
	for _, s := range c.Services {
		if c.serves(s, p, socket) && s.check(p) == "" {
			d.Service = s
			return d
		}
	}
	d.Reason = reason.NoServiceForUID
	nearest := 0
	for _, s := range c.Services {
		why := s.check(p)
		switch here := c.serves(s, p, socket); {
		case !here && why == "":
			why = reason.WrongSocket
		case !here:
			continue
		}
		if near := rank(why); near > nearest {
			d.Reason, d.near, nearest = why, s, near
		}
	}
	return d
}

// Needs returns what services on a socket have rules about of the peer's process.
func (c *Config) Needs(p *peer.Info, socket string) (wanted peer.Evidence) {
	if _, ok := p.Registered.Get(); ok {
		wanted = peer.EvidencePlace
	}
	for _, s := range c.Services {
		if !c.serves(s, p, socket) {
			continue
		}
		for _, r := range rules {
			if r.applies(s) {
				wanted |= r.evidence
			}
		}
	}
	return wanted
}

// rank orders the reasons by how much of a service's rules was met.
func rank(id reason.ID) int {
	if id == reason.WrongSocket {
		return 1
	}
	for i := range rules {
		if slices.Contains(rules[i].reasons, id) {
			return 2 + i
		}
	}
	return 0
}

// check applies the rules of s but for the socket, and returns the first one that p fails, or "".
func (s *Service) check(p *peer.Info) reason.ID {
	if !s.AllowAnyUID && s.EUID != p.UID {
		return reason.NoServiceForUID
	}
	for i := range rules {
		if r := &rules[i]; r.applies(s) {
			if why := r.check(s, p); why != "" {
				return why
			}
		}
	}
	return ""
}

// Socket returns the one that was decided for.
func (d Decision) Socket() string { return d.socket }

// Conclusion says what the decision is about, in a line: the service that matches, or the one that
// came nearest and the rule of it that failed.
func (d Decision) Conclusion() string {
	switch {
	case d.Service != nil:
		return d.of(d.Service)
	case d.near != nil:
		return d.of(d.near)
	case strayed(d.peer):
		return straying(d.peer)
	}
	return fmt.Sprintf("no service reached through %s is for uid %d", d.socket, d.peer.UID)
}

// Trace has a line for every service considered, in order, that says which rule failed first and
// what would have met it, or that the service matches.
func (d Decision) Trace() []string {
	var lines []string
	for _, s := range d.conf.Services {
		lines = append(lines, d.of(s))
		if s == d.Service {
			break
		}
	}
	return lines
}

// of says what the decision is about one service.
func (d Decision) of(s *Service) string {
	about := fmt.Sprintf("service/%s (%s) ", s.Name, s.Where)
	switch {
	case s == d.Service:
		return about + "matches"
	case strayed(d.peer):
		return about + "is for nobody who uses the socket of a pod that he is not in"
	}
	why := s.check(d.peer)
	if why == reason.NoServiceForUID {
		return about + fmt.Sprintf("is for uid %d, not %d", s.EUID, d.peer.UID)
	}
	for _, r := range rules {
		if slices.Contains(r.reasons, why) {
			return about + r.text(s, d.peer, why)
		}
	}
	return about + fmt.Sprintf("is reached through %s, not %s", d.conf.SocketOf(s), d.socket)
}

// plain returns what a peer may have chosen as it is, or in quotes if it could be taken for
// something else.
func plain(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r == '"' || r == '\\' || unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
