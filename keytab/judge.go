package keytab

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// What a file means for the keytab.
//
// A good file that has all the keys of the present ring is published at once, since it cannot make
// things worse. One that lacks some may still be under its writer's hands, and is published when it
// has been the same for a while. A bad file is read again for a while before that is an error, and
// the old ring stays. A missing file leaves the old ring for a grace time (unlink and create again
// is a rotation too); then the ring is empty, because who removes a keytab wants its keys gone.

// state is what the looks at a keytab's file have come to. Only judge makes another one of it;
// nothing here reads a file, asks for the time or waits.
type state struct {
	ring      *Ring             // in use
	seen      bool              // there has been a good file
	loaded    bool              // and its keys are in use
	digest    [sha256.Size]byte // of the file that the ring was made of
	candidate *Ring             // a good ring that lacks keys of the present one, until it is believed
	proposed  [sha256.Size]byte // digest of the candidate's file
	since     time.Time         // when the present trouble, or the candidate, was first seen; zero when all is well
	gone      time.Time         // when the file was first found missing; zero when it is not
	err       error             // why the file cannot be used, once that is no passing matter
	hint      string            // what follows from err, and what to do
}

// judge returns what a look at the file makes of the state, and how soon the next look must be, 0
// for any time. content is what was read, which compile makes a ring of, err why it could not be read.
func (s state) judge(p pace, now time.Time, content []byte, compile func(content []byte) (*Ring, error), err error) (state, time.Duration) {
	if err != nil {
		return s.trouble(p, now, err)
	}
	digest := sha256.Sum256(content)
	if s.loaded && digest == s.digest {
		return wellWith(s.ring, digest), 0
	}
	ring := s.candidate
	if ring == nil || digest != s.proposed {
		if ring, err = compile(content); err != nil {
			return s.trouble(p, now, err)
		}
	}
	if !ring.covers(s.ring) {
		if ring != s.candidate {
			s.candidate, s.proposed, s.since = ring, digest, now
		}
		if left := p.unchanged - now.Sub(s.since); left > 0 {
			return s, left
		}
	}
	return wellWith(ring, digest), 0
}

// wellWith is the state in which a ring is what the file has.
func wellWith(ring *Ring, digest [sha256.Size]byte) state {
	return state{ring: ring, seen: true, loaded: true, digest: digest}
}

// trouble keeps the ring, has an error when the trouble lasts, and gives up the keys of a file that
// stays away.
func (s state) trouble(p pace, now time.Time, err error) (state, time.Duration) {
	if s.candidate != nil {
		s.candidate, s.since = nil, time.Time{}
	}
	if s.since.IsZero() {
		s.since = now
	}
	missing := errors.Is(err, fs.ErrNotExist)
	switch {
	case !missing:
		s.gone = time.Time{}
	case s.gone.IsZero():
		s.gone = now
	}
	if s.loaded && now.Sub(s.since) < p.alarm {
		return s, p.retry
	}
	s.err = err
	var next time.Duration
	switch {
	case !s.seen:
		s.hint = "there are no keys to use; a good keytab put there is used at once"
	case !s.loaded:
		s.hint = goneHint
	case !missing:
		s.hint = "the keys loaded before stay in use; put a good keytab in its place, best by rename"
	case now.Sub(s.gone) < p.grace:
		s.hint = fmt.Sprintf("the keys loaded before stay in use for %v after it went, in case it is being replaced", p.grace)
		next = p.grace - now.Sub(s.gone)
	default:
		s.ring, s.loaded, s.hint = Compile(s.ring.name, nil), false, goneHint
	}
	return s, next
}

const goneHint = "its keys are no longer used; a good keytab put there is used at once"
