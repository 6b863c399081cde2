package api

import (
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"gssproxyd/keystore"
	"gssproxyd/keystore/delivery"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/mech/reason"
)

// A KeyGiven is a key that is brought into the store.
type KeyGiven struct {
	KVNO    uint32 `json:"kvno"`
	Enctype int32  `json:"enctype"`
	Key     []byte `json:"key"`
	Since   int64  `json:"since,omitempty"` // when it was made, in Unix seconds
}

// Format writes "[redacted]" for every verb and flag, as etype.Secret does.
func (KeyGiven) Format(f fmt.State, _ rune) { io.WriteString(f, etype.Secret(nil).String()) }

// ImportRequest brings keys of a principal, or asks what that would do, and whether they are there.
type ImportRequest struct {
	Principal string     `json:"principal"`
	Keys      []KeyGiven `json:"keys"`
	Write     bool       `json:"write"`
	Hosts     []string   `json:"hosts,omitempty"`   // of the policy, if the entry is new
	Aliases   []string   `json:"aliases,omitempty"` // other names of the same account, with the same keys
}

// Outcome is what becomes of keys that are brought.
type Outcome string

// The outcomes. Of an entry it is that of its keys which comes last here.
const (
	KeySame     Outcome = "same"     // the store has it
	KeyNames    Outcome = "names"    // likewise, and the entry lacks aliases
	KeyOlder    Outcome = "older"    // of a version before the current one: it is kept as a previous one
	KeyMore     Outcome = "more"     // of the current version, with an encryption type that the store lacks
	KeyNewer    Outcome = "newer"    // of a version after the current one, which becomes a previous one
	KeyNew      Outcome = "new"      // there is no entry
	KeyConflict Outcome = "conflict" // the store has another key of this version and type, a rotation has just asked the KDC, or an alias is somebody else's
)

var outcomes = []Outcome{KeySame, KeyNames, KeyOlder, KeyMore, KeyNewer, KeyNew, KeyConflict}

// KeyOutcome is what becomes of one key.
type KeyOutcome struct {
	KVNO    uint32  `json:"kvno"`
	Enctype string  `json:"enctype"`
	Outcome Outcome `json:"outcome"`
}

// Imported answers an import.
type Imported struct {
	Principal string       `json:"principal"`
	Outcome   Outcome      `json:"outcome"`
	Text      string       `json:"text,omitempty"`     // why there is a conflict
	Rotation  string       `json:"rotation,omitempty"` // what becomes of one that goes on
	Keys      []KeyOutcome `json:"keys"`
	Aliases   []string     `json:"aliases"` // that the entry lacks
	Written   bool         `json:"written"`
}

// maxKeys bounds the keys of one import.
const maxKeys = 256

func (s *Server) importKeys(ctx context.Context, a *administrator, r *ImportRequest) (*Imported, error) {
	defer func() {
		for i := range r.Keys {
			clear(r.Keys[i].Key)
		}
	}()
	if len(r.Keys) == 0 || len(r.Keys) > maxKeys {
		return nil, badRequest("%d keys; 1 to %d are expected", len(r.Keys), maxKeys)
	}
	type kind struct {
		kvno    uint32
		enctype int32
	}
	seen := make(map[kind]bool)
	for _, k := range r.Keys {
		if id := etype.ID(k.Enctype); !id.Supported() || len(k.Key) != id.KeySize() {
			return nil, badRequest("key %d of type %v has %d bytes; a supported type is expected, with a key of its length", k.KVNO, id, len(k.Key))
		}
		if seen[kind{k.KVNO, k.Enctype}] {
			return nil, badRequest("key %d of type %v is there twice", k.KVNO, etype.ID(k.Enctype))
		}
		seen[kind{k.KVNO, k.Enctype}] = true
	}
	if err := a.mayAll(r.Aliases); err != nil {
		return nil, err
	}
	if !r.Write {
		e, err := s.o.Store.Entry(ctx, r.Principal)
		if errors.Is(err, keystore.ErrNoEntry) {
			e = &keystore.Entry{Principal: r.Principal}
		} else if err != nil {
			return nil, err
		}
		defer e.Zero()
		res := r.compare(e)
		if err := s.o.Store.Claims(ctx, r.Principal, e.Aliases, res.Aliases); err != nil {
			res.Outcome, res.Text = KeyConflict, refusal(err).Text
		}
		return res, nil
	}
	var res *Imported
	var nothing = errors.New("there is nothing to change")
	what := fmt.Sprintf("import of kvno %d", r.newest())
	e, err := s.o.Store.Change(ctx, nil, r.Principal, a.name, what, func(e *keystore.Entry) error {
		res = r.compare(e)
		if res.Outcome == KeyConflict {
			return refuse(http.StatusConflict, reason.StoreConflict, "%s: %s", r.Principal, res.Text)
		}
		if res.Outcome == KeySame {
			return nothing
		}
		r.apply(e, time.Now())
		return nil
	})
	if errors.Is(err, nothing) {
		return res, nil
	}
	if err != nil {
		return nil, err
	}
	e.Zero()
	res.Written = true
	return res, nil
}

// compare says what becomes of the keys in an entry.
func (r *ImportRequest) compare(e *keystore.Entry) *Imported {
	res := &Imported{Principal: r.Principal, Outcome: KeySame, Aliases: []string{}}
	for _, name := range r.Aliases {
		if !slices.Contains(e.Aliases, name) {
			res.Aliases, res.Outcome = append(res.Aliases, name), KeyNames
		}
	}
	current := newest(e)
	ends := e.Rotation != nil && r.newest() > current
	pending := ends && r.hasPending(e)
	unsettled := ends && !pending && e.Rotation.Step == keystore.Sent
	switch {
	case pending:
		res.Rotation = fmt.Sprintf("the KDC has taken its keys, as kvno %d: it ends with that", r.newest())
	case ends && !unsettled:
		res.Rotation = "it ends without having changed the key: the KDC has the keys that are brought"
	}
	for _, k := range r.Keys {
		out := KeyOlder
		switch i := slices.IndexFunc(e.Keys, func(has keystore.Key) bool {
			return has.State != keystore.Pending && has.KVNO == k.KVNO && has.Enctype == etype.ID(k.Enctype)
		}); {
		case i >= 0 && subtle.ConstantTimeCompare(e.Keys[i].Secret, k.Key) == 1:
			out = KeySame
		case i >= 0:
			out = KeyConflict
			res.Text = fmt.Sprintf("the store has another key of version %d and type %v", k.KVNO, etype.ID(k.Enctype))
		case k.KVNO > current && unsettled:
			out = KeyConflict
			res.Text = fmt.Sprintf("a rotation has asked the KDC for the pending key at %s, and it is not known yet what came of that: keystored finds out by itself, a minute and the realm's lag after it, or when the KDC can be asked again; import the keys then",
				e.Rotation.Since.UTC().Format(time.RFC3339))
		case len(e.Keys) == 0:
			out = KeyNew
		case k.KVNO > current:
			out = KeyNewer
		case k.KVNO == current:
			out = KeyMore
		}
		res.Keys = append(res.Keys, KeyOutcome{k.KVNO, etype.ID(k.Enctype).String(), out})
		if slices.Index(outcomes, out) > slices.Index(outcomes, res.Outcome) {
			res.Outcome = out
		}
	}
	return res
}

// newest returns the highest version of a key that is brought.
func (r *ImportRequest) newest() (kvno uint32) {
	for _, k := range r.Keys {
		kvno = max(kvno, k.KVNO)
	}
	return kvno
}

// hasPending reports whether the keys of the highest version are those that are pending in an entry.
func (r *ImportRequest) hasPending(e *keystore.Entry) (same bool) {
	for _, k := range r.Keys {
		for _, has := range e.Keys {
			if k.KVNO == r.newest() && has.State == keystore.Pending && has.Enctype == etype.ID(k.Enctype) {
				if subtle.ConstantTimeCompare(has.Secret, k.Key) == 0 {
					return false
				}
				same = true
			}
		}
	}
	return same
}

// endRotation ends the rotation that goes on in an entry, since keys of a version after the current one
// are brought. It returns until when keys that are previous ones now are kept.
func (r *ImportRequest) endRotation(e *keystore.Entry, now time.Time) (until time.Time) {
	pending := r.hasPending(e)
	if !pending { // the version of those was a guess
		e.Keys = slices.DeleteFunc(e.Keys, func(has keystore.Key) bool {
			drop := has.State == keystore.Pending && slices.ContainsFunc(r.Keys, func(k KeyGiven) bool { return k.KVNO == has.KVNO })
			if drop {
				has.Secret.Zero()
			}
			return drop
		})
	}
	until = now.Add(e.Rotation.Keep)
	e.EndRotation(pending, r.newest(), now)
	return until
}

// apply puts the keys into an entry: those of the highest version are the current ones.
func (r *ImportRequest) apply(e *keystore.Entry, now time.Time) {
	if e.Revision == 0 || !e.Deleted.IsZero() {
		e.Deleted = time.Time{}
		e.Policy.Hosts = slices.Concat(e.Policy.Hosts, r.Hosts)
		slices.Sort(e.Policy.Hosts)
		e.Policy.Hosts = slices.Compact(e.Policy.Hosts)
	}
	e.Alarm = ""
	var until time.Time // unknown, until the next rotation
	if e.Rotation != nil && r.newest() > newest(e) {
		until = r.endRotation(e, now)
	}
	e.Aliases = slices.Concat(e.Aliases, r.Aliases)
	for _, k := range r.Keys {
		if slices.ContainsFunc(e.Keys, func(has keystore.Key) bool { return has.KVNO == k.KVNO && has.Enctype == etype.ID(k.Enctype) }) {
			continue
		}
		since := now
		if k.Since > 0 {
			since = time.Unix(k.Since, 0)
		}
		e.Keys = append(e.Keys, keystore.Key{State: keystore.Current, KVNO: k.KVNO, Enctype: etype.ID(k.Enctype), Secret: slices.Clone(k.Key), Since: since})
	}
	current := newest(e)
	for i := range e.Keys {
		if k := &e.Keys[i]; k.State == keystore.Current && k.KVNO < current {
			k.State, k.Since, k.Until = keystore.Previous, now, until
		}
	}
	slices.SortStableFunc(e.Keys, func(a, b keystore.Key) int { return cmp.Compare(b.KVNO, a.KVNO) })
}

// KeyShown is what may be shown of a key.
type KeyShown struct {
	State   keystore.KeyState `json:"state"`
	KVNO    uint32            `json:"kvno"`
	Enctype string            `json:"enctype"`
	Since   time.Time         `json:"since"`
}

// Summary is what a list has of an entry.
type Summary struct {
	Principal string `json:"principal"`
	keystore.Mark
	KVNO     uint32     `json:"kvno"` // of the current keys; 0: there are none
	Enctypes []string   `json:"enctypes"`
	Since    *time.Time `json:"since,omitempty"`    // they are current
	Interval int64      `json:"interval,omitempty"` // seconds between rotations
	Rotation string     `json:"rotation,omitempty"` // the step that is done of one that goes on
	Alarm    string     `json:"alarm,omitempty"`    // why it does not go on, or why the keys are not the KDC's
	Disabled string     `json:"disabled,omitempty"` // why
	Deleted  *time.Time `json:"deleted,omitempty"`
}

// Shown is what may be shown of an entry.
type Shown struct {
	Summary
	Aliases      []string                 `json:"aliases"`
	Keys         []KeyShown               `json:"keys"`
	Policy       keystore.Policy          `json:"policy"`
	Begun        *time.Time               `json:"begun,omitempty"` // the rotation that goes on
	Acknowledged map[string]keystore.Mark `json:"acknowledged"`    // what each host has in force
}

// step says how far a rotation is, in words; empty: none goes on.
func (s Summary) step() string {
	if s.Rotation != "" && s.Alarm != "" {
		return s.Rotation + ": " + s.Alarm
	}
	return s.Rotation
}

func summary(e *keystore.Entry) Summary {
	s := Summary{Principal: e.Principal, Mark: e.Mark, KVNO: newest(e), Enctypes: []string{}, Interval: int64(e.Interval / time.Second), Alarm: e.Alarm, Disabled: e.Disabled}
	for i := range e.Keys {
		if k := &e.Keys[i]; k.State == keystore.Current {
			s.Enctypes = append(s.Enctypes, k.Enctype.String())
			s.Since = &k.Since
		}
	}
	if e.Rotation != nil {
		s.Rotation = string(e.Rotation.Step)
	}
	if !e.Deleted.IsZero() {
		s.Deleted = &e.Deleted
	}
	return s
}

func (s *Server) show(ctx context.Context, _ *administrator, n *Named) (*Shown, error) {
	e, err := s.o.Store.Entry(ctx, n.Principal)
	if err != nil {
		return nil, err
	}
	defer e.Zero()
	acknowledged, err := s.o.Store.Acknowledged(ctx, n.Principal)
	if err != nil {
		return nil, err
	}
	shown := &Shown{Summary: summary(e), Aliases: append([]string{}, e.Aliases...), Keys: []KeyShown{}, Policy: e.Policy, Acknowledged: acknowledged}
	for i := range e.Keys {
		k := &e.Keys[i]
		shown.Keys = append(shown.Keys, KeyShown{k.State, k.KVNO, k.Enctype.String(), k.Since})
	}
	if e.Rotation != nil {
		shown.Begun = &e.Rotation.Begun
	}
	return shown, nil
}

// HistoryShown is what was done with an entry.
type HistoryShown struct {
	Principal string            `json:"principal"`
	History   []keystore.Change `json:"history"` // the newest at the end
}

func (s *Server) history(ctx context.Context, _ *administrator, n *Named) (*HistoryShown, error) {
	e, err := s.o.Store.Entry(ctx, n.Principal)
	if err != nil {
		return nil, err
	}
	defer e.Zero()
	return &HistoryShown{n.Principal, append([]keystore.Change{}, e.History...)}, nil
}

// EntriesShown are the entries that an administrator may list.
type EntriesShown struct {
	Entries []Summary `json:"entries"` // by principal
	Refused []string  `json:"refused"` // what could not be read, and why
}

func (s *Server) listAll(ctx context.Context, a *administrator, _ *Nothing) (*EntriesShown, error) {
	res := &EntriesShown{Entries: []Summary{}, Refused: []string{}}
	for e, err := range s.o.Store.Entries(ctx) {
		if r, refused := errors.AsType[*keystore.Refusal](err); refused {
			res.Refused = append(res.Refused, r.Error())
			continue
		} else if err != nil {
			return nil, err
		}
		if a.permits(e.Principal) {
			res.Entries = append(res.Entries, summary(e))
		}
		e.Zero()
	}
	slices.SortFunc(res.Entries, func(a, b Summary) int { return strings.Compare(a.Principal, b.Principal) })
	return res, nil
}

// keyring is what may be shown of the keyring.
func (s *Server) keyring() (*KeyringShown, error) {
	k, err := s.o.Store.Keyring()
	if err != nil {
		return nil, err
	}
	shown := &KeyringShown{Epoch: k.Epoch, Generation: k.Generation, Signer: delivery.FormatSigner(k.Signer), Members: append([]keystore.Member{}, k.Members...), Masters: []MasterShown{}}
	for _, m := range k.Masters {
		shown.Masters = append(shown.Masters, MasterShown{m.ID, m.Made})
	}
	return shown, nil
}
