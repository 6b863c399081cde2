package conf

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"gssproxyd/rpc/peer"
)

// Reason says why no service matched. The values are stable: they appear in the
// log, in what explain prints, and in the documentation.
type Reason string

// The reasons. Of several services, the one that came nearest to matching gives
// the reason; see [Config.Decide].
const (
	ReasonUID              Reason = "no-service-for-uid"
	ReasonSELinux          Reason = "selinux-mismatch"
	ReasonProgram          Reason = "program-mismatch"
	ReasonProgramUnknown   Reason = "program-unknown"
	ReasonProgramElsewhere Reason = "program-in-other-namespace"
	ReasonSocket           Reason = "wrong-socket"
)

// ReasonDoc describes a Reason for people.
type ReasonDoc struct {
	ID   Reason
	Text string // what happened
	Hint string // what to do about it
}

// Reasons describes every Reason.
var Reasons = []ReasonDoc{
	{ReasonUID, "no service on this socket is for the peer's uid",
		"set euid of the service to the user the program runs as, or allow_any_uid"},
	{ReasonSELinux, "the peer's SELinux context is not that of the service",
		"compare selinux_context with ps -Z; the option is deprecated, euid and socket do as well"},
	{ReasonProgram, "the peer runs another program than the service is for",
		"set program to what readlink /proc/PID/exe says; scripts run as their interpreter"},
	{ReasonProgramUnknown, "the service is for one program, and the peer's is not known",
		"the peer may have ended, or be a kernel thread; remove program if that is what should match"},
	{ReasonProgramElsewhere, "the peer has a file system of its own, and its program is not the file with that path here",
		"give programs in containers a service with a socket that only they can reach, instead of program"},
	{ReasonSocket, "the service the peer belongs to is reached through another socket",
		"set GSSPROXY_SOCKET of the peer to the service's socket, or remove socket from the service"},
}

// Doc returns the description of r.
func (r Reason) Doc() ReasonDoc {
	for _, d := range Reasons {
		if d.ID == r {
			return d
		}
	}
	return ReasonDoc{ID: r}
}

// Decision is the answer of [Config.Decide].
type Decision struct {
	Service *Service // that the peer belongs to; nil if it is refused
	Reason  Reason   // of the refusal; "" if there is a service
	Near    *Service // of a refusal, the service the reason is about; may be nil

	conf   *Config
	peer   *peer.Info
	socket string
}

// Decide finds the first service that all of these admit, in this order, which
// is that of the C daemon: uid, SELinux context, program, socket. It looks at
// nothing but its arguments, and does not allocate when a service matches.
//
// A refusal is explained by the service that came nearest: one on this socket
// that admits the uid; else one that would admit the peer on another socket;
// else the reason is the uid.
//
// The Decision keeps p for its texts.
func (c *Config) Decide(p *peer.Info, socket string) Decision {
	d := Decision{conf: c, peer: p, socket: socket}
	for _, s := range c.Services {
		if s.check(p) == "" && c.serves(s, socket) {
			d.Service = s
			return d
		}
	}
	d.Reason = ReasonUID
	nearest := 0
	for _, s := range c.Services {
		reason, rank := s.check(p), 0
		switch here := c.serves(s, socket); {
		case here:
			rank = reason.rank()
		case reason == "":
			reason, rank = ReasonSocket, ReasonSocket.rank()
		}
		if rank > nearest {
			d.Reason, d.Near, nearest = reason, s, rank
		}
	}
	return d
}

// rank orders the reasons by how much of a service's rules was met.
func (r Reason) rank() int {
	switch r {
	case ReasonProgram, ReasonProgramUnknown, ReasonProgramElsewhere:
		return 3
	case ReasonSELinux:
		return 2
	case ReasonSocket:
		return 1
	}
	return 0
}

// check applies the rules of s but for the socket, and returns the first one
// that p fails, or "".
func (s *Service) check(p *peer.Info) Reason {
	if !s.AllowAnyUID && s.EUID != p.UID {
		return ReasonUID
	}
	if s.SELinuxContext != "" {
		theirs, ok := parseContext(p.SELinux.V)
		if !p.SELinux.OK || !ok || !s.selinux.equal(theirs) {
			return ReasonSELinux
		}
	}
	if s.Program != "" {
		switch program, ok := p.Program.Get(); {
		case ok && program == s.Program:
		case ok:
			return ReasonProgram
		case p.MountNS.OK && !p.MountNS.V:
			return ReasonProgramElsewhere
		default:
			return ReasonProgramUnknown
		}
	}
	return ""
}

// Conclusion says what the decision is about, in a line: the service that
// matches, or the one that came nearest and the rule of it that failed.
func (d Decision) Conclusion() string {
	switch {
	case d.Service != nil:
		return d.of(d.Service)
	case d.Near != nil:
		return d.of(d.Near)
	}
	return fmt.Sprintf("no service reached through %s is for uid %d", d.socket, d.peer.UID)
}

// Trace has a line for every service considered, in order, that says which rule
// failed first and what would have met it, or that the service matches.
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
	if s == d.Service {
		return about + "matches"
	}
	p := d.peer
	switch s.check(p) {
	case ReasonUID:
		return about + fmt.Sprintf("is for uid %d, not %d", s.EUID, p.UID)
	case ReasonSELinux:
		if theirs, ok := p.SELinux.Get(); ok {
			return about + fmt.Sprintf("is for SELinux context %s, not %s", s.SELinuxContext, plain(theirs))
		}
		return about + fmt.Sprintf("is for SELinux context %s, and that of the caller is not known", s.SELinuxContext)
	case ReasonProgram:
		return about + fmt.Sprintf("is for program %s, not %s", s.Program, plain(p.Program.V))
	case ReasonProgramElsewhere:
		return about + fmt.Sprintf("is for program %s, and in the caller's mount namespace that is another file, or the caller runs another program", s.Program)
	case ReasonProgramUnknown:
		return about + fmt.Sprintf("is for program %s, and that of the caller is not known", s.Program)
	}
	return about + fmt.Sprintf("is reached through %s, not %s", d.conf.SocketOf(s), d.socket)
}

// plain returns what a peer may have chosen as it is, or in quotes if it could
// be taken for something else.
func plain(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r == '"' || r == '\\' || unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
