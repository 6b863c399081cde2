package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/interposer"
	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// causes are errors as they come, by the number that is for them.
func causes(t *testing.T) map[syscall.Errno][]error {
	refused := func(major mech.Major, id reason.ID) error {
		return fmt.Errorf("gssproxy: %w", mech.Errorf(major, 0, id, "text"))
	}
	ended, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	<-ended.Done()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	r.SetReadDeadline(time.Unix(1, 0))
	_, silent := r.Read(make([]byte, 1))
	return map[syscall.Errno][]error{
		syscall.EACCES: {
			fmt.Errorf("rpc: NULL: %w", rpc.ErrNoAnswer),
			fmt.Errorf("rpc: %w", &rpc.Fault{Reason: reason.CallerUnknown}),
			refused(mech.Unauthorized, ""),
			refused(mech.Failure, reason.TargetNotAllowed),
			refused(mech.Unavailable, reason.OperationNotAllowed),
		},
		syscall.EINVAL: {
			badInput("target is missing"),
			refused(mech.BadName, ""), refused(mech.BadNameType, ""), refused(mech.BadMech, ""), refused(mech.NoContext, ""), refused(mech.BadQOP, ""),
			refused(mech.NoContext, reason.BadContext),
		},
		syscall.EKEYEXPIRED: {
			refused(mech.CredentialsExpired, ""), refused(mech.ContextExpired, ""),
			refused(mech.Failure, reason.TicketExpired),
		},
		syscall.EKEYREJECTED: {
			refused(mech.DefectiveToken, ""), refused(mech.BadMIC, ""), refused(mech.BadBindings, ""),
			refused(mech.DuplicateToken, ""), refused(mech.OldToken, ""), refused(mech.UnseqToken, ""), refused(mech.GapToken, ""),
			refused(mech.Failure, reason.Replay),
		},
		syscall.EAGAIN: {
			limits.NewBudget("things", 4).Take(1000, 5),
			over(limits.NewBudget("things", 4).Take(1000, 5), reason.TooMuchBuffered),
			fmt.Errorf("rpc: %w", &rpc.Fault{Reason: reason.TooManyConnections}),
			refused(mech.Failure, reason.RateLimited),
		},
		syscall.ETIMEDOUT: {
			fmt.Errorf("rpc: %w", ended.Err()), silent,
			refused(mech.Failure, reason.KDCUnreachable),
		},
		syscall.EMSGSIZE: {errTooLong},
		syscall.EIO: {
			errors.New("something else"), context.Canceled,
			refused(mech.Failure, ""), refused(mech.NoCred, reason.NoCredential),
			&rpc.Fault{Reason: reason.BadRecord},
		},
	}
}

// TestErrnoOf: each number has its causes, and gssproxyd-fs(5) has it.
func TestErrnoOf(t *testing.T) {
	list := causes(t)
	for errno, errs := range list {
		for _, err := range errs {
			if got := errnoOf(err); got != errno {
				t.Errorf("%v: %s, want %s", err, unix.ErrnoName(got), unix.ErrnoName(errno))
			}
		}
	}
	source, err := os.ReadFile("errno.go")
	if err != nil {
		t.Fatal(err)
	}
	described := regexp.MustCompile(`(?m)^//\t(E[A-Z]+) `).FindAllStringSubmatch(string(source), -1)
	if len(described) != len(list) {
		t.Errorf("%d numbers are described, and %d have causes here", len(described), len(list))
	}
	page, err := os.ReadFile("../docs/gssproxyd-fs.5")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n.Sh ERRORS\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	for errno := range list {
		name := unix.ErrnoName(errno)
		if !slices.ContainsFunc(described, func(m []string) bool { return m[1] == name }) {
			t.Errorf("errno.go does not describe %s", name)
		}
		if !strings.Contains(section, "\n.It Er "+name+"\n") {
			t.Errorf("the page does not have %s", name)
		}
	}
}

// TestByReason: each reason with a number is one that there is, and its number one of those that have causes.
func TestByReason(t *testing.T) {
	list := causes(t)
	for id, errno := range byReason {
		if id.Doc().Text == "" {
			t.Errorf("%q is no reason", id)
		}
		if list[errno] == nil {
			t.Errorf("%s has %s", id, unix.ErrnoName(errno))
		}
	}
}

// TestRefusalOf: words come with a reason that there is and with what to do, and are no longer than they may be.
func TestRefusalOf(t *testing.T) {
	for _, errs := range causes(t) {
		for _, err := range errs {
			if m, ok := errors.AsType[*mech.Error](err); ok && m.Reason == "" {
				continue
			}
			if r := refusalOf(err); reason.ID(r.Reason).Doc().Text == "" || r.Hint == "" {
				t.Errorf("%v: %+v", err, r)
			}
		}
	}
	if r := refusalOf(badInput("%s", strings.Repeat("é", maxWords))); len(r.Text) > maxWords+len("...") || !strings.HasSuffix(r.Text, "é...") {
		t.Errorf("%d bytes: %q", len(r.Text), r.Text)
	}
}

// silent are calls that nothing answers in time: that with number proc, and those after it.
type silent struct{ proc xdr.Proc }

func (s silent) Call(_ context.Context, proc uint32, _ []byte) ([]byte, error) {
	if proc < uint32(s.proc) {
		return nil, nil
	}
	return nil, fmt.Errorf("rpc: %w", context.DeadlineExceeded)
}

func (silent) Close() error { return nil }

// TestTimedOut: what is not done in time is refused with ETIMEDOUT, and a step in words.
func TestTimedOut(t *testing.T) {
	dir, _ := mountedFor(t, everything, func(p *peer.Info) (interposer.Caller, error) {
		return silent{map[uint32]xdr.Proc{1000: xdr.ProcNull + 1}[p.UID]}, nil
	})
	const words = `{"reason":"kdc-unreachable","text":"it was not done in 20s"`
	out, _ := sh(t, dir, 1000, inNames+`exec 3<>transact; echo '{"name":"alice"}' >&3; cat <&3`)
	if !strings.HasPrefix(out, "/bin/bash: line 1: echo: write error: Connection timed out\n"+words) {
		t.Errorf("a step: %s", out)
	}
	out, _ = sh(t, dir, 1001, inNames+"exec 3<>transact")
	if out != "/bin/bash: line 1: transact: Connection timed out\n" {
		t.Errorf("who opens: %s", out)
	}
}

// deadlined are calls that note until when they may take.
type deadlined struct{ until *time.Time }

func (d deadlined) Call(ctx context.Context, _ uint32, _ []byte) ([]byte, error) {
	*d.until, _ = ctx.Deadline()
	return nil, nil
}

func (deadlined) Close() error { return nil }

// TestOneDeadline: all that opening a file waits for has one deadline, that of the request.
func TestOneDeadline(t *testing.T) {
	var called, explained time.Time
	s := &Server{ctx: t.Context(), o: Options{
		Limits: limits.ForProcess(),
		Caller: func(*peer.Info) (interposer.Caller, error) { return deadlined{&called}, nil },
		Explain: func(ctx context.Context, _ *peer.Info) (e Explanation) {
			explained, _ = ctx.Deadline()
			return e
		},
	}}
	ctx, cancel := s.inTime(t.Context())
	defer cancel()
	want, ok := ctx.Deadline()
	if left := time.Until(want); !ok || left > openWithin {
		t.Errorf("%v", left)
	}
	who := &peer.Opener{Info: &peer.Info{UID: 1000}}
	if _, errno := s.calling(ctx, who); errno != 0 || !called.Equal(want) {
		t.Errorf("a call: %v: until %v, want %v", errno, called, want)
	}
	if _, errno := s.explain(ctx, who); errno != 0 || !explained.Equal(want) {
		t.Errorf("what it may: %v: until %v, want %v", errno, explained, want)
	}
	over, cancel := context.WithTimeout(ctx, 0)
	defer cancel()
	if _, errno := s.explain(over, who); errno != syscall.ETIMEDOUT {
		t.Errorf("what was cut short: %v", errno)
	}
}
