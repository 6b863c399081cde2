package keystore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gssproxyd/mech/reason"
)

// A name belongs to one entry: to that of this principal, or to one that has it as an alias. The
// record of an alias is the very one that an entry of that principal would have. It says whose alias
// the name is, and is committed with the entry's own. So two that claim a name claim one record, and
// one of them is refused, whichever instances they ask.
//
// The mark of an entry that gets a name, or loses one, is above those that the name had before. So
// what a host is told of a name has a higher mark each time, whosever the name is by then.

// maxAliases is how many names an entry may have besides its own, and maxClaims how many it may get and
// lose at a time: etcd takes 128 records in a commit.
const (
	maxAliases = 100
	maxClaims  = 120
)

// claim is a record of a name that an entry gets or loses.
type claim struct {
	*Entry
	record  string
	version uint64 // that it replaces
	what    string // becomes of the name, in words
}

// record reads what there is of a name: an entry, or an alias. It is ErrNoEntry if there is nothing.
func (s *Store) record(ctx context.Context, name string) (e *Entry, record string, version uint64, err error) {
	if err := s.use(func(r *ring) error {
		record = r.entryName(name)
		return nil
	}); err != nil {
		return nil, "", 0, err
	}
	k, version, err := s.read(ctx, record, name)
	if errors.Is(err, errAbsent) {
		err = ErrNoEntry
	}
	return k.entry, record, version, err
}

// isAlias returns the refusal of what is asked about an alias as if it were an entry, nil if it is one.
func (e *Entry) isAlias() error {
	if e.aliasOf == "" {
		return nil
	}
	return &Refusal{reason.StoreConflict, fmt.Sprintf("%s is an alias of %s: name that", e.Principal, e.aliasOf)}
}

// claims returns the records of names that an entry gets or loses, compared with those that it had,
// and a line about it, empty if there are none. The error is an [*Argument] or a [*Refusal] if it
// cannot have one of its names.
func (s *Store) claims(ctx context.Context, e *Entry, had []string, now time.Time) (list []claim, what string, err error) {
	slices.Sort(e.Aliases)
	e.Aliases = slices.Compact(e.Aliases)
	if len(e.Aliases) > maxAliases {
		return nil, "", &Argument{fmt.Sprintf("%s would have %d aliases; at most %d are possible", e.Principal, len(e.Aliases), maxAliases)}
	}
	read := func(name string) (c claim, err error) {
		c.Entry, c.record, c.version, err = s.record(ctx, name)
		if errors.Is(err, ErrNoEntry) {
			c.Entry, err = new(Entry), nil
		}
		return c, err
	}
	_, realm, _ := strings.Cut(e.Principal, "@")
	for _, name := range e.Aliases {
		if slices.Contains(had, name) {
			continue
		}
		if _, of, _ := strings.Cut(name, "@"); name == e.Principal || of != realm {
			return nil, "", &Argument{fmt.Sprintf("%q cannot be an alias of %s; another name of the same account is expected, with its realm", name, e.Principal)}
		}
		c, err := read(name)
		switch {
		case err != nil:
			return nil, "", err
		case c.aliasOf != "" && c.aliasOf != e.Principal:
			return nil, "", &Refusal{reason.StoreConflict, fmt.Sprintf("%s is an alias of %s already: drop it there first (keystored alias)", name, c.aliasOf)}
		case c.aliasOf == "" && c.Revision != 0 && c.Deleted.IsZero():
			c.Zero()
			return nil, "", &Refusal{reason.StoreConflict, fmt.Sprintf("%s is an entry of its own: delete it first (keystored delete), hosts then get the keys of %s by that name", name, e.Principal)}
		case len(c.Aliases) > 0: // which nobody could take from it any more
			return nil, "", &Refusal{reason.StoreConflict, fmt.Sprintf("%s was deleted and has aliases still, %s: drop them there first (keystored alias)", name, strings.Join(c.Aliases, ", "))}
		}
		c.Entry = &Entry{Principal: name, aliasOf: e.Principal, Mark: c.Mark, History: c.History}
		c.what = "; alias " + name
		list, what = append(list, c), what+c.what
	}
	for _, name := range had {
		if slices.Contains(e.Aliases, name) {
			continue
		}
		c, err := read(name)
		if err != nil {
			return nil, "", err
		}
		if c.aliasOf != e.Principal { // a backend that was put back in part
			c.Zero()
			continue
		}
		c.Entry = &Entry{Principal: name, Mark: c.Mark, Deleted: now, History: c.History}
		c.what = "; no alias " + name
		list, what = append(list, c), what+c.what
	}
	if len(list) > maxClaims {
		return nil, "", &Argument{fmt.Sprintf("%d names would become aliases of %s or be taken away; at most %d can at a time", len(list), e.Principal, maxClaims)}
	}
	return list, what, nil
}

// Claims returns why an entry cannot have names as aliases beside those that it had, as [Store.Change]
// would, nil if it can.
func (s *Store) Claims(ctx context.Context, principal string, had, names []string) error {
	_, _, err := s.claims(ctx, &Entry{Principal: principal, Aliases: slices.Concat(had, names)}, had, time.Time{})
	return err
}
