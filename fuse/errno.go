package fuse

import (
	"context"
	"errors"
	"os"
	"syscall"

	"gssproxyd/limits"
	"gssproxyd/mech"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
)

// errnoOf returns the number for a refusal, which a shell shows in the kernel's words:
//
//	EACCES        the configuration does not let the caller
//	EINVAL        what was written is not what is expected
//	EKEYEXPIRED   a credential, a ticket or a context has ended
//	EKEYREJECTED  a token is refused
//	EAGAIN        the caller's share is used up: later
//	ETIMEDOUT     a KDC does not answer, or it was not done in time
//	EMSGSIZE      too long
//	EIO           anything else
func errnoOf(err error) syscall.Errno {
	if errors.Is(err, errTooLong) {
		return syscall.EMSGSIZE
	}
	if timedOut(err) {
		return syscall.ETIMEDOUT
	}
	if errors.Is(err, rpc.ErrNoAnswer) { // no service is for the caller
		return syscall.EACCES
	}
	if _, ok := errors.AsType[*limits.Error](err); ok {
		return syscall.EAGAIN
	}
	if f, ok := errors.AsType[*rpc.Fault](err); ok {
		if errno, ok := byReason[f.Reason]; ok {
			return errno
		}
	}
	m, ok := errors.AsType[*mech.Error](err)
	if !ok {
		return syscall.EIO
	}
	if errno, ok := byReason[m.Reason]; ok {
		return errno
	}
	switch m.Major.Routine() {
	case mech.Unauthorized:
		return syscall.EACCES
	case mech.CredentialsExpired, mech.ContextExpired:
		return syscall.EKEYEXPIRED
	case mech.DefectiveToken, mech.BadMIC, mech.BadBindings:
		return syscall.EKEYREJECTED
	case mech.BadName, mech.BadNameType, mech.BadMech, mech.NoContext, mech.BadQOP:
		return syscall.EINVAL
	}
	if m.Major&(mech.DuplicateToken|mech.OldToken|mech.UnseqToken|mech.GapToken) != 0 {
		return syscall.EKEYREJECTED
	}
	return syscall.EIO
}

func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
}

// over gives the refusal of a budget its reason. Another error is returned as it is.
func over(err error, id reason.ID) error {
	if l, ok := errors.AsType[*limits.Error](err); ok {
		return mech.Errorf(mech.Failure, 0, id, "%v", l)
	}
	return err
}

// byReason are the numbers that a major status does not say.
var byReason = map[reason.ID]syscall.Errno{
	reason.BadArgument: syscall.EINVAL,
	reason.BadContext:  syscall.EINVAL,

	reason.TooManyConnections: syscall.EAGAIN,
	reason.TooMuchBuffered:    syscall.EAGAIN,
	reason.TooManyLargeCalls:  syscall.EAGAIN,
	reason.TooManyExecutions:  syscall.EAGAIN,
	reason.RateLimited:        syscall.EAGAIN,
	reason.OverLimit:          syscall.EAGAIN,

	reason.KDCUnreachable: syscall.ETIMEDOUT,
	reason.TicketExpired:  syscall.EKEYEXPIRED,

	reason.Replay:              syscall.EKEYREJECTED,
	reason.ClockSkew:           syscall.EKEYREJECTED,
	reason.TicketNotYetValid:   syscall.EKEYREJECTED,
	reason.TicketInvalid:       syscall.EKEYREJECTED,
	reason.NoKey:               syscall.EKEYREJECTED,
	reason.KVNOMismatch:        syscall.EKEYREJECTED,
	reason.WrongPrincipal:      syscall.EKEYREJECTED,
	reason.BadIntegrity:        syscall.EKEYREJECTED,
	reason.EnctypeNotPermitted: syscall.EKEYREJECTED,
	reason.BadMatch:            syscall.EKEYREJECTED,
	reason.BadClient:           syscall.EKEYREJECTED,
	reason.BadAddress:          syscall.EKEYREJECTED,
	reason.Transited:           syscall.EKEYREJECTED,
	reason.BadChecksum:         syscall.EKEYREJECTED,
	reason.BadDelegation:       syscall.EKEYREJECTED,
	reason.UserToUser:          syscall.EKEYREJECTED,
	reason.PeerError:           syscall.EKEYREJECTED,
	reason.MutualFailed:        syscall.EKEYREJECTED,
	reason.OutOfOrder:          syscall.EKEYREJECTED,

	reason.CallerUnknown:       syscall.EACCES,
	reason.UsageNotAllowed:     syscall.EACCES,
	reason.OperationNotAllowed: syscall.EACCES,
	reason.TargetNotAllowed:    syscall.EACCES,
	reason.UserNotAllowed:      syscall.EACCES,
	reason.ClientNotAllowed:    syscall.EACCES,
	reason.EnctypeNotAllowed:   syscall.EACCES,
	reason.BindingsRequired:    syscall.EACCES,
	reason.PACRequired:         syscall.EACCES,
	reason.NoTransition:        syscall.EACCES,
	reason.NoDelegation:        syscall.EACCES,
	reason.MechNotAllowed:      syscall.EACCES,
	reason.AuditFailed:         syscall.EACCES,
}
