package keystore

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"gssproxyd/audit"
	"gssproxyd/mech/reason"
)

// A backup is lines of JSON: one with its format, one for the keyring, one for each kept record, sealed
// as it is, and one with the number of records and the signer's Ed25519 signature of backupContext
// and the SHA-256 of all lines before. It is of no use to who has no identity that opens its keyring.
const (
	backupFormat  = "gssproxyd key store backup 1"
	backupContext = "gssproxyd key store: backup 1\x00"
)

// backupLine is one of them.
type backupLine struct {
	Format    string `json:"format,omitempty"`
	Name      string `json:"name,omitempty"`
	Value     []byte `json:"value,omitempty"`
	Records   int    `json:"records,omitempty"`
	Signature []byte `json:"signature,omitempty"`
}

// Backup writes what is in the store, as it all was at one moment, and returns how many entries and
// hosts that are.
func (s *Store) Backup(ctx context.Context, w io.Writer) (records int, err error) {
	all, _, err := s.b.List(ctx, "")
	if err != nil {
		return 0, err
	}
	sum := sha256.New()
	out := bufio.NewWriter(io.MultiWriter(w, sum))
	lines := json.NewEncoder(out)
	err = lines.Encode(backupLine{Format: backupFormat})
	for _, r := range all {
		if r.Name != keyringName && !strings.HasPrefix(r.Name, keptPrefix) {
			continue
		}
		if err == nil {
			err = lines.Encode(backupLine{Name: r.Name, Value: r.Value})
		}
		records++
	}
	if err = errors.Join(err, out.Flush()); err != nil {
		return 0, err
	}
	end := backupLine{Records: records}
	if err := s.use(func(r *ring) error {
		end.Signature = ed25519.Sign(r.signer, append([]byte(backupContext), sum.Sum(nil)...))
		return nil
	}); err != nil {
		return 0, err
	}
	if err := errors.Join(lines.Encode(end), out.Flush()); err != nil {
		return 0, err
	}
	return records - 1, nil
}

// A Restore says how a store is restored.
type Restore struct {
	// Former is where the store was: its keyring says who the members are now and who signs, its hosts
	// which were removed. Nil: it is not there any more.
	Former Backend

	// Members has those of the backup be the members: also who was revoked since, or of whom that is not
	// known.
	Members bool

	// Recipient is that of this instance, where Options.Identity is one for recovery. It becomes a member.
	Recipient string

	DryRun bool // nothing is written
}

// Restored says what a restored store has.
type Restored struct {
	Records int // entries and hosts
	Epoch   uint64
	Signer  ed25519.PublicKey
	Members []Member // who can open it
	Gone    []Member // of the backup, and no members of the former store any more
	Known   bool     // there was a former store to compare with
	Hosts   []string // that are enrolled
	Removed []string // that were in the backup, and are not in the former store: they stay removed
	Refused []string // records of the backup that are not believed, and left out
}

// ErrMembers is of a restore of which nobody has said who can open the store then.
var ErrMembers = errors.New("it is not known who of the backup's members was revoked since")

// Do fills a backend that has nothing in it with a backup, and begins a new epoch: hosts and instances
// that have seen later records take these for newer. All is sealed with a new master key. What was
// changed since the backup is lost: the caller compares the keys with the KDC's. All instances are to be
// stopped meanwhile. The backup has to be signed by one of o.Signers. With [ErrMembers] nothing was
// written, and the result is what would be.
func (how *Restore) Do(ctx context.Context, b Backend, o Options, r io.Reader) (*Restored, error) {
	o.fill()
	if err := empty(ctx, b); err != nil {
		return nil, err
	}
	all, err := readBackup(r, o.Signers)
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	i := slices.IndexFunc(all, func(r Record) bool { return r.Name == keyringName })
	if i < 0 {
		return nil, errors.New("backup: it has no keyring")
	}
	k, err := openKeyring(all[i].Value, o.Identity, o.Signers)
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	all = slices.Delete(all, i, i+1)
	from, err := newRing(k, 0)
	if err != nil {
		k.zero()
		return nil, fmt.Errorf("backup: %w", err)
	}
	defer from.zero()
	// Before anything is written: no instance may run, and this one has to be able to note what it does.
	m, err := openMarks(o.StateDir)
	if err != nil {
		return nil, err
	}
	defer m.close()
	if err := m.of(from.Store); err != nil {
		return nil, err
	}
	was, removed, err := how.former(ctx, from, o, m.get(keyringName))
	if err != nil {
		return nil, fmt.Errorf("former backend: %w", err)
	}
	if was != nil {
		defer was.zero()
	}
	into, res, err := how.keyring(o, from, was)
	if err != nil {
		return nil, err
	}
	defer into.zero()
	records, err := how.records(from, into, all, removed, res)
	switch {
	case err != nil:
		return nil, err
	case was == nil && !how.Members && !how.DryRun:
		return res, ErrMembers
	case how.DryRun:
		return res, nil
	}
	keyring, err := into.keyring.seal()
	if err != nil {
		return nil, err
	}
	done := audit.Event{Kind: audit.KeyringChanged, Time: o.Now(), Text: fmt.Sprintf("generation %d by %s: the store was restored, epoch %d, for %s", into.mark.Revision, o.Name, into.mark.Epoch, memberNames(into.Members))}
	if err := errors.Join(m.flush(), o.intend(ctx, done)); err != nil {
		return nil, err
	}
	for some := range slices.Chunk(records, 50) {
		if _, err := b.Commit(ctx, nil, some...); err != nil {
			return nil, err
		}
	}
	// Without it the store does not open, so that one that is half restored is not taken for whole.
	if _, err := b.Commit(ctx, nil, Record{Name: keyringName, Value: keyring}); err != nil {
		return nil, err
	}
	o.Audit(ctx, &done)
	m.saw(keyringName, into.mark)
	return res, m.flush()
}

// former opens the keyring of the former backend, and reads which hosts were removed there, by their
// records' names; nil if there is none.
func (how *Restore) former(ctx context.Context, backup *ring, o Options, seen Mark) (*ring, map[string]*Host, error) {
	if how.Former == nil {
		return nil, nil, nil
	}
	record, err := how.Former.Get(ctx, keyringName)
	if err == nil && record.Version == 0 {
		err = errors.New("there is no keyring")
	}
	if err != nil {
		return nil, nil, err
	}
	k, err := openKeyring(record.Value, o.Identity, o.Signers)
	if err != nil {
		return nil, nil, err
	}
	r, err := newRing(k, record.Version)
	switch {
	case err != nil:
	case !bytes.Equal(r.Store, backup.Store):
		err = errors.New("it is of another store than the backup")
	case r.mark.Compare(seen) < 0 || r.mark.Compare(backup.mark) < 0:
		err = &Refusal{reason.StoreKeyringOld, fmt.Sprintf("its keyring, of epoch %d and generation %d, is not the last one: the backup has epoch %d and generation %d, and this instance has seen epoch %d and generation %d", r.mark.Epoch, r.mark.Revision, backup.mark.Epoch, backup.mark.Revision, seen.Epoch, seen.Revision)}
	}
	if err != nil {
		k.zero()
		return nil, nil, err
	}
	hosts, _, err := how.Former.List(ctx, hostPrefix)
	if err != nil {
		r.zero()
		return nil, nil, err
	}
	removed := make(map[string]*Host)
	for _, h := range hosts {
		var w hostJSON
		if r.open(h.Name, h.Value, &w) == nil && !w.Removed.IsZero() {
			removed[h.Name] = w.host()
		}
	}
	return r, removed, nil
}

// keyring makes the keyring of the restored store: that of the former one, if there is one, else that of
// the backup, with a new master key. A backup can be restored twice: the clock makes two epochs of that.
func (how *Restore) keyring(o Options, backup, was *ring) (*ring, *Restored, error) {
	last := backup
	if was != nil {
		last = was
	}
	k := last.clone()
	newest := max(backup.Masters[len(backup.Masters)-1].ID, k.Masters[len(k.Masters)-1].ID)
	for _, m := range k.Masters {
		clear(m.Key)
	}
	k.Masters, k.Sealing = []master{newMaster(newest+1, o.Now())}, newest+1
	if was == nil && k.Next != nil { // who was revoked since may know it
		clear(k.Next)
		k.Next = nil
	}
	res := &Restored{Known: was != nil, Signer: publicOf(k.Seed)}
	for _, m := range backup.Members {
		if was != nil && !slices.ContainsFunc(was.Members, func(has Member) bool { return has.Recipient == m.Recipient }) {
			res.Gone = append(res.Gone, m)
		}
	}
	if how.Members {
		k.Members = slices.Clone(backup.Members)
	}
	if r := how.Recipient; r != "" && !slices.ContainsFunc(k.Members, func(m Member) bool { return m.Recipient == r }) {
		if slices.ContainsFunc(k.Members, func(m Member) bool { return m.Name == o.Name }) {
			k.zero()
			return nil, nil, &Argument{fmt.Sprintf("there is a member %s with another recipient: give this instance another name in its configuration, and revoke that one if it is lost", o.Name)}
		}
		k.Members = append(k.Members, Member{o.Name, r, o.Now(), o.Name})
	}
	k.mark = Mark{max(last.mark.Epoch+1, uint64(o.Now().Unix())), last.mark.Revision + 1}
	res.Epoch, res.Members = k.mark.Epoch, k.Members
	into, err := newRing(k, 0)
	if err != nil {
		k.zero()
	}
	return into, res, err
}

// records seals what a backup has for the restored store.
func (how *Restore) records(from, into *ring, all []Record, removed map[string]*Host, res *Restored) ([]Record, error) {
	var list []Record
	for _, record := range all {
		k, err := from.openKept(record)
		if err != nil {
			res.Refused = append(res.Refused, fmt.Sprintf("record %s: %v", record.Name, err))
			continue
		}
		if h := k.host; h != nil && h.Removed.IsZero() {
			if gone := removed[record.Name]; gone != nil {
				h.Removed, h.By = gone.Removed, gone.By
				res.Removed = append(res.Removed, h.Name)
			} else {
				res.Hosts = append(res.Hosts, h.Name)
			}
		}
		value, err := into.seal(record.Name, k.in(into.mark.Epoch))
		k.zero()
		if err != nil {
			return nil, err
		}
		list = append(list, Record{Name: record.Name, Value: value})
	}
	res.Records = len(list)
	slices.Sort(res.Hosts)
	slices.Sort(res.Removed)
	return list, nil
}

// openKept opens a kept record with this keyring and no other.
func (r *ring) openKept(record Record) (kept, error) {
	if strings.HasPrefix(record.Name, hostPrefix) {
		var w hostJSON
		err := r.open(record.Name, record.Value, &w)
		return kept{host: w.host()}, err
	}
	var w entryJSON
	err := r.open(record.Name, record.Value, &w)
	return kept{entry: w.entry()}, err
}

// in returns what is sealed of a kept record, as of an epoch.
func (k kept) in(epoch uint64) any {
	if k.host != nil {
		k.host.Epoch = epoch
		return k.host.wire()
	}
	k.entry.Epoch = epoch
	return k.entry.wire()
}

// readBackup reads a backup and verifies it.
func readBackup(r io.Reader, signers []ed25519.PublicKey) (records []Record, err error) {
	in := bufio.NewReader(r)
	sum := sha256.New()
	for {
		text, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			text, err = longLine(in, text)
		}
		if err != nil {
			return nil, fmt.Errorf("it ends after %d records, without its last line: %w", len(records), err)
		}
		var line backupLine
		if err := json.Unmarshal(text, &line); err != nil {
			return nil, fmt.Errorf("line %d is no line of a backup", len(records)+2)
		}
		switch {
		case line.Signature != nil:
			return records, verifyBackup(line, len(records), sum, signers)
		case line.Name != "":
			records = append(records, Record{Name: line.Name, Value: line.Value})
		case line.Format != backupFormat:
			return nil, fmt.Errorf("its format is %.40q; expected is %q", line.Format, backupFormat)
		}
		sum.Write(text)
	}
}

// longLine reads the rest of a line, which may be as long as that of a record that is as large as one
// can be.
func longLine(in *bufio.Reader, begun []byte) ([]byte, error) {
	text := slices.Clone(begun)
	for {
		more, err := in.ReadSlice('\n')
		text = append(text, more...)
		if len(text) > 2*maxRecord {
			return nil, errors.New("a line is too long")
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return text, err
		}
	}
}

func verifyBackup(end backupLine, records int, sum hash.Hash, signers []ed25519.PublicKey) error {
	message := append([]byte(backupContext), sum.Sum(nil)...)
	signed := slices.ContainsFunc(signers, func(k ed25519.PublicKey) bool { return ed25519.Verify(k, message, end.Signature) })
	if !signed || end.Records != records {
		return &Refusal{reason.StoreKeyringUnsigned, "the backup is not signed by any of the configured signers, or was changed"}
	}
	return nil
}
