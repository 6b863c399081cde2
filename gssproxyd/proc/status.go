package proc

import (
	"errors"
	"log/slog"
	"strings"
	"syscall"

	"gssproxyd/audit"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/xdr"
)

// probe is the refusal of what a library tries on its own and does without: nothing for the log at
// its usual level.
type probe struct{ error }

func (p probe) Unwrap() error { return p.error }

// refuse logs a refusal and makes its GSS status. The minor text begins with the stable reason in
// brackets, so that it reaches the user of the client and can be looked up, and ends with the call's
// id, with which the log has it; both texts end in a NUL as libgssapi clients expect.
func (c *call) refuse(err error) xdr.Status {
	e, known := errors.AsType[*mech.Error](err)
	if !known {
		e = mech.Errorf(mech.Failure, uint32(syscall.EIO), reasonOf(err), "internal error").Of("")
	}
	text := e.MinorString()
	text = strings.ToValidUTF8(text[:min(len(text), maxText)], "")
	c.Event.Kind, c.Event.Reason, c.Event.Text = audit.CallDenied, string(e.Reason), text
	if c.Event.Routine = known && errors.As(err, new(probe)); !c.Event.Routine {
		c.rpc.Conn.Refused.Add(1)
	}
	switch {
	case c.Event.Routine:
		c.note(slog.LevelDebug, e.Reason, "refused", "status", e.Major.Text(), "error", text)
	case known:
		c.note(slog.LevelWarn, e.Reason, "refused", "status", e.Major.Text(), "error", text)
	default:
		c.note(slog.LevelError, e.Reason, "call failed", "error", err)
	}
	c.p.log.Tracef("%v of service %s refused: %s: %s [%s]", xdr.Proc(c.rpc.Proc), c.Service.Name, e.Major.Text(), text, e.Reason)
	return xdr.Status{
		MajorStatus:       uint64(e.Major),
		Mech:              []byte(e.Mech),
		MinorStatus:       uint64(e.Minor),
		MajorStatusString: []byte(e.Major.Text() + "\x00"),
		MinorStatusString: []byte(e.Reason.Before(text) + " (call " + c.Event.CallID() + ")\x00"),
	}
}

// reasonOf is the reason of a refusal.
func reasonOf(err error) reason.ID {
	if e, ok := errors.AsType[*mech.Error](err); ok {
		return e.Reason
	}
	return reason.Internal
}

// maxText bounds a status text, here and in the log: the kernel has one page for each, and a name
// may be as long as a record.
const maxText = 2048
