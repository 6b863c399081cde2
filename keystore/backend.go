package keystore

import (
	"context"
	"errors"
	"iter"
)

// A Backend keeps records, and knows not what is in them. Whoever can write to it can lose or
// replay records, which a [Store] finds out, and cannot make one.
type Backend interface {
	// Get returns a record. Its Version is 0 if there is none.
	Get(ctx context.Context, name string) (Record, error)

	// List returns the records whose names begin with prefix in the order of their names, as they all
	// were at one moment, and the version of the backend at that moment.
	List(ctx context.Context, prefix string) (records []Record, at uint64, err error)

	// Commit makes all changes, or none of them: each record takes the place of the one of its name, or
	// with a nil Value nothing does, or with Keep that one stays, if its version is Version still, 0 for
	// one that is not there. If one is not, the error is [ErrConflict]; if a lock is given that is not
	// held any more, [ErrLockLost]. After any other error it is not known whether they were made. It
	// returns the version of the backend that has them, which is theirs.
	Commit(ctx context.Context, lock Lock, changes ...Record) (at uint64, err error)

	// Watch yields what is committed after a version under names that begin with prefix, until ctx
	// ends: the records of one Commit at a time, with a nil Value where there is none any more, and
	// the backend's version that has them. The last pair has an error, unless ctx ended:
	// [ErrCompacted] when the backend does not know any more what came after the version; the caller
	// lists again.
	Watch(ctx context.Context, prefix string, after uint64) iter.Seq2[Committed, error]

	// Lock waits until no instance has the lock of this name, and takes it. A lock is lost when its
	// holder is not heard of for some seconds.
	Lock(ctx context.Context, name string) (Lock, error)

	// Close lets go of the backend. No call may be in progress.
	Close() error
}

// A Record is a name and what is kept under it. Its Version is the backend's when it was committed.
type Record struct {
	Name    string
	Value   []byte
	Version uint64
	Keep    bool // of a change: there is none, the record is only to be as it was
}

// Committed is what one Commit has changed.
type Committed struct {
	Records []Record
	At      uint64
}

// A Lock is one that is held.
type Lock interface {
	// Lost is closed when the lock is not held any more.
	Lost() <-chan struct{}
	// Unlock lets go of it.
	Unlock(ctx context.Context) error
}

// Errors of a Backend.
var (
	ErrConflict  = errors.New("somebody else has changed it meanwhile")
	ErrLockLost  = errors.New("the lock was lost: another instance may have gone on")
	ErrCompacted = errors.New("what was changed since is not known any more")
)
