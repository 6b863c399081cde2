package keystore

import (
	"bufio"
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

// Restore fills a backend that has nothing in it with a backup, and begins a new epoch: hosts and
// instances that have seen later records take these for newer. It returns how many entries and hosts
// there are. What was changed since the backup is lost: the caller compares the keys with the KDC's.
// All instances are to be stopped meanwhile. The backup has to be signed by one of o.Signers.
func Restore(ctx context.Context, b Backend, o Options, r io.Reader) (records int, err error) {
	o.fill()
	if err := empty(ctx, b); err != nil {
		return 0, err
	}
	all, err := readBackup(r, o.Signers)
	if err != nil {
		return 0, fmt.Errorf("backup: %w", err)
	}
	i := slices.IndexFunc(all, func(r Record) bool { return r.Name == keyringName })
	if i < 0 {
		return 0, errors.New("backup: it has no keyring")
	}
	k, err := openKeyring(all[i].Value, o.Identity, o.Signers)
	if err != nil {
		return 0, err
	}
	all = slices.Delete(all, i, i+1)
	ring, err := newRing(k, 0)
	if err != nil {
		k.zero()
		return 0, err
	}
	defer ring.zero()
	// Before anything is written: no instance may run, and this one has to be able to note what it does.
	m, err := openMarks(o.StateDir)
	if err != nil {
		return 0, err
	}
	m.close()
	// A backup can be restored twice: the clock makes two epochs of that.
	ring.mark = Mark{max(k.mark.Epoch+1, uint64(o.Now().Unix())), k.mark.Revision + 1}
	s := &Store{o: o, ring: ring}
	for some := range slices.Chunk(all, 50) {
		var changes []Record
		for _, record := range some {
			kept, err := s.unsealKept(ctx, record)
			if err != nil {
				return 0, fmt.Errorf("backup: record %s: %w", record.Name, err)
			}
			value, err := ring.seal(record.Name, kept.in(ring.mark.Epoch))
			kept.zero()
			if err != nil {
				return 0, err
			}
			changes = append(changes, Record{Name: record.Name, Value: value})
		}
		if _, err := b.Commit(ctx, nil, changes...); err != nil {
			return 0, err
		}
	}
	// Without it the store does not open, so that one that is half restored is not taken for whole.
	if err := createKeyring(ctx, b, o, &ring.keyring); err != nil {
		return 0, err
	}
	o.Audit(ctx, &audit.Event{Kind: audit.KeyringChanged, Time: o.Now(), Text: fmt.Sprintf("generation %d by %s: the store was restored, epoch %d", ring.mark.Revision, o.Name, ring.mark.Epoch)})
	return len(all), nil
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
