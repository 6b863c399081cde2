package kdc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"gssproxyd/mech"
	"gssproxyd/mech/krb5/wire"
	"gssproxyd/mech/reason"
)

// Requests go to the KDCs of a realm in the order configured, first over the transport that
// udp_preference_limit prefers, then over the other. The next one is tried when the one before
// failed, or has not answered for half a second; those before are still listened to, and the first
// answer counts. So a dead KDC delays an exchange but does not fail it, and the one that answered
// goes first the next time.
const (
	stagger        = 500 * time.Millisecond
	goodFor        = 5 * time.Minute
	defaultTimeout = 10 * time.Second
)

// Sizes of messages. The smaller ones are RFC 4120's and MIT krb5's for UDP.
const (
	maxTCP           = 1 << 20
	maxUDP           = 64 << 10
	udpPreference    = 1465
	maxUDPPreference = 32700
)

// answer is what came back.
type answer struct {
	reply  []byte
	server target // as configured
}

// send gives req, which has had its turn, to a KDC of the realm and returns its reply, which is one
// whole AS-REP, TGS-REP or KRB-ERROR by its tag and length; nothing more is known of it. The error
// is a *mech.Error.
func (c *Client) send(ctx context.Context, realm string, req []byte, primary bool) (answer, error) {
	came, refused := c.admit(ctx, realm)
	if refused != nil {
		return answer{}, refused
	}
	a, err := c.deliver(ctx, realm, req, primary)
	switch {
	case err == nil:
		came(nil)
	case unreached(err) && ctx.Err() == nil:
		came(err)
		return answer{}, err
	default:
		return answer{}, err
	}
	return a, nil
}

// deliver is send for a request that is admitted.
func (c *Client) deliver(ctx context.Context, realm string, req []byte, primary bool) (answer, *mech.Error) {
	limit := c.limit()
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	servers, err := c.locate(wait, realm, primary)
	if err != nil {
		return answer{}, err.(*mech.Error)
	}
	c.trace("Sending a request (%d bytes) to realm %s", len(req), realm)
	var runs []func(context.Context) (answer, error)
	for _, t := range c.order(realm, servers, len(req)) {
		runs = append(runs, func(ctx context.Context) (answer, error) {
			reply, err := c.reach(ctx, t, req)
			if err != nil {
				err = fmt.Errorf("%v: %w", t, err)
				if ctx.Err() == nil {
					c.trace("No answer of realm %s: %v", realm, err)
					if c.Log != nil {
						c.Log.LogAttrs(ctx, slog.LevelInfo, "KDC does not answer", slog.String("realm", realm), slog.String("error", err.Error()))
					}
				}
			}
			return answer{reply, t}, err
		})
	}
	a, err := race(wait, runs)
	c.mu.Lock()
	if err == nil {
		s := c.realm(realm)
		s.good, s.until = a.server, c.clock().Add(goodFor)
	} else if s := c.realms[realm]; s != nil {
		s.good = target{}
	}
	c.mu.Unlock()
	if err == nil {
		c.traceAnswer(realm, a)
		return a, nil
	}
	var not notAdmitted
	if errors.As(err, &not) {
		return answer{}, not.refused
	}
	var down *unavailable
	if errors.As(err, &down) {
		return answer{}, mech.Errorf(mech.Failure, wire.MinorUnavailable, reason.KDCUnreachable, ": every KDC of realm '%s' that answers says so", wire.Shown(realm))
	}
	detail := wire.Shown(strings.ReplaceAll(err.Error(), "\n", "; "))
	if ctx.Err() != nil {
		detail = "the caller's time is over"
	} else if wait.Err() != nil {
		detail = fmt.Sprintf("no answer within %v", limit)
	}
	return answer{}, mech.Errorf(mech.Failure, wire.MinorUnreachable, reason.KDCUnreachable, "Cannot contact any KDC for realm '%s': %s", wire.Shown(realm), detail)
}

// limit is how long one exchange may take.
func (c *Client) limit() time.Duration {
	if c.Timeout != 0 {
		return c.Timeout
	}
	if limit := c.duration("request_timeout", 0); limit > 0 {
		return limit
	}
	return defaultTimeout
}

// order returns where to send a request of that size: the KDC that answered last, then the others
// as configured.
func (c *Client) order(realm string, servers []server, size int) (list []target) {
	preferred := min(c.number("udp_preference_limit", udpPreference), maxUDPPreference)
	if preferred < 0 {
		preferred = udpPreference
	}
	networks := []string{"udp", "tcp"}
	if size > preferred {
		networks = []string{"tcp", "udp"}
	}
	for _, network := range networks {
		if network == "udp" && size > maxUDPPreference {
			continue
		}
		for _, s := range servers {
			if s.only == "" || s.only == network {
				list = append(list, target{network, s.host, s.port})
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.realms[realm]
	if s == nil || !c.clock().Before(s.until) {
		return list
	}
	for i, t := range list {
		// Of the two transports the one this request prefers.
		if t.host == s.good.host && t.port == s.good.port {
			copy(list[1:i+1], list[:i])
			list[0] = t
			break
		}
	}
	return list
}

// race starts the first of runs, and the next one whenever one failed or the stagger is over. The
// first to succeed wins; it returns when all that were started have ended. If none succeeds the
// errors are joined.
func race[T any](ctx context.Context, runs []func(context.Context) (T, error)) (won T, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		v   T
		err error
	}
	results := make(chan result)
	timer := time.NewTimer(0)
	defer timer.Stop()
	var errs []error
	success := false
	for next, running := 0, 0; running > 0 || next < len(runs) && !success && ctx.Err() == nil; {
		var start <-chan time.Time
		if next < len(runs) && !success && ctx.Err() == nil {
			start = timer.C
		}
		select {
		case <-start:
			run := runs[next]
			next++
			running++
			timer.Reset(stagger)
			go func() {
				var r result
				defer func() {
					// It has read what anybody may have sent: a fault is the end of this run only.
					if fault := recover(); fault != nil {
						r.err = fmt.Errorf("panic: %T", fault)
					}
					results <- r
				}()
				r.v, r.err = run(ctx)
			}()
		case r := <-results:
			running--
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
				timer.Reset(0)
			case !success:
				won, success = r.v, true
				cancel()
			}
		}
	}
	switch {
	case success:
		return won, nil
	case len(errs) == 0:
		return won, ctx.Err()
	}
	return won, errors.Join(errs...)
}

// reach sends req to a target, at all its addresses if it is a name, in the manner of race.
func (c *Client) reach(ctx context.Context, t target, req []byte) ([]byte, error) {
	if c.Dial != nil || net.ParseIP(t.host) != nil {
		return c.ask(ctx, t, req)
	}
	closed, err := c.socket(ctx)
	if err != nil {
		return nil, err
	}
	addresses, err := c.resolver().LookupNetIP(ctx, "ip", t.host)
	closed()
	if err != nil {
		return nil, err
	}
	var runs []func(context.Context) ([]byte, error)
	for _, a := range addresses[:min(len(addresses), maxServers)] {
		runs = append(runs, func(ctx context.Context) ([]byte, error) {
			return c.ask(ctx, target{t.network, a.Unmap().String(), t.port}, req)
		})
	}
	return race(ctx, runs)
}

// unavailable is the error of a KDC that answers KDC_ERR_SVC_UNAVAILABLE: another one may do
// better.
type unavailable struct{}

func (*unavailable) Error() string { return "the KDC says that it is not available" }

// ask sends req to one address. An answer that is too big for UDP is fetched over TCP.
func (c *Client) ask(ctx context.Context, t target, req []byte) ([]byte, error) {
	over := c.udp
	if t.network == "tcp" {
		over = c.tcp
	}
	reply, err := over(ctx, t, req)
	if err != nil || !wire.IsKRBError(reply) {
		return reply, err
	}
	k, malformed := parseError(reply)
	if malformed != nil {
		return reply, nil // to be complained about by who asked
	}
	switch {
	case k.Minor() == wire.MinorTooBig && t.network == "udp":
		c.trace("The answer of %v is too big for UDP", t)
		return c.ask(ctx, target{"tcp", t.host, t.port}, req)
	case k.Minor() == wire.MinorUnavailable:
		return nil, new(unavailable)
	}
	return reply, nil
}

// dial connects; the connection is closed when ctx ends, at the latest by done.
func (c *Client) dial(ctx context.Context, t target) (conn net.Conn, done func(), err error) {
	dial := c.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	closed, err := c.socket(ctx)
	if err != nil {
		return nil, nil, err
	}
	conn, err = dial(ctx, t.network, net.JoinHostPort(t.host, t.port))
	if err != nil {
		closed()
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return conn, func() {
		if stop() {
			conn.Close()
		}
		closed()
	}, nil
}

// tcp exchanges one message: four octets of length in front (RFC 4120 section 7.2.2).
func (c *Client) tcp(ctx context.Context, t target, req []byte) ([]byte, error) {
	conn, done, err := c.dial(ctx, t)
	if err != nil {
		return nil, err
	}
	defer done()
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(req))), req...)); err != nil {
		return nil, err
	}
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxTCP {
		return nil, fmt.Errorf("announces an answer of %d octets; expected at most %d", n, maxTCP)
	}
	reply, err := io.ReadAll(io.LimitReader(conn, int64(n))) // grows with what arrives, not with what is announced
	switch {
	case err != nil:
		return nil, err
	case len(reply) < int(n):
		return nil, fmt.Errorf("closed the connection after %d of %d octets", len(reply), n)
	case wire.ReplyType(reply) == 0:
		return nil, errors.New("the answer is no Kerberos message")
	}
	return reply, nil
}

// datagrams are buffers for the longest datagram there can be; what comes is most often a hundredth
// of that.
var datagrams = sync.Pool{New: func() any { return new([maxUDP]byte) }}

// udp sends the request again after one second, then two, then four and so on, until there is an
// answer. What is no message of a KDC is passed over: anybody can send a datagram.
func (c *Client) udp(ctx context.Context, t target, req []byte) ([]byte, error) {
	conn, done, err := c.dial(ctx, t)
	if err != nil {
		return nil, err
	}
	defer done()
	datagram := datagrams.Get().(*[maxUDP]byte)
	defer datagrams.Put(datagram)
	buf := datagram[:]
	for wait := time.Second; ; wait *= 2 {
		if _, err := conn.Write(req); err != nil {
			return nil, err
		}
		conn.SetReadDeadline(time.Now().Add(wait))
		for {
			n, err := conn.Read(buf)
			if err == nil && wire.ReplyType(buf[:n]) != 0 {
				return append([]byte(nil), buf[:n]...), nil
			}
			if err == nil || errors.Is(err, syscall.EMSGSIZE) {
				continue
			}
			var late net.Error
			if errors.As(err, &late) && late.Timeout() && ctx.Err() == nil {
				break
			}
			return nil, err
		}
	}
}
