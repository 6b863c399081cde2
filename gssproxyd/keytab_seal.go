package main

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"gssproxyd/command"
	"gssproxyd/gssproxyd/nss"
	"gssproxyd/keytab"
	"gssproxyd/keytab/sealed"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/openat"
)

// Sealing a keytab that is in the clear. Wherever it is interrupted there is the clear file, or a
// good sealed one: that is made complete beside its name, which it gets in one step, and only when
// it was opened and compared is the clear one removed. The same command goes on from there.

// keytabSealCommand is gssproxyd keytab seal.
func keytabSealCommand(o *options) *cobra.Command {
	var recipients []string
	var write, remove, force bool
	cmd := &cobra.Command{
		Use:   "seal FILE [OUT]",
		Short: "Say how a keytab would be sealed to this host, into FILE.age, and with --write do it",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := o.sealing(args, recipients)
			if err != nil {
				return fmt.Errorf("keytab seal: %w", err)
			}
			defer s.close()
			if err := s.look(force); err != nil {
				return fmt.Errorf("keytab seal: %w", err)
			}
			out := cmd.OutOrStdout()
			s.say(out, remove)
			if !write {
				fmt.Fprintln(out, "Nothing was done: --write does it.")
				return nil
			}
			if err := s.write(); err != nil {
				return fmt.Errorf("keytab seal: %w; %s is as it was", err, s.from)
			}
			fmt.Fprintf(out, "Written: %s\n", command.Shown(s.to))
			if err := s.verify(); err != nil {
				return fmt.Errorf("keytab seal: %w; %s is still there", err, s.from)
			}
			if s.identity == nil || !s.ours() {
				fmt.Fprintln(out, "Not verified: this host cannot open it.")
				if remove {
					return fmt.Errorf("keytab seal: %s is still there: what cannot be opened here is no reason to remove it", s.from)
				}
				return nil
			}
			fmt.Fprintln(out, "Opened and compared: it has the same keys, and the daemon takes it there.")
			if !remove {
				fmt.Fprintf(out, "Still there, in the clear: %s (--remove removes it)\n", command.Shown(s.from))
			} else if err := s.removeClear(); err != nil {
				return fmt.Errorf("keytab seal: %w; %s is still there", err, s.from)
			} else {
				fmt.Fprintf(out, "Removed: %s. Copies of it, in backups or snapshots, have the keys in the clear as before.\n", command.Shown(s.from))
				if s.st.Nlink > 1 {
					fmt.Fprintf(out, "It had %d names, and has the others still, with the keys in the clear.\n", s.st.Nlink)
				}
			}
			fmt.Fprintf(out, "In the configuration write SEALED:%s\n", command.Shown(s.to))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&recipients, "recipient", nil, "seal to this `recipient` (age1...), and to this host only if it is named too; may be repeated")
	f.BoolVar(&write, "write", false, "do it")
	f.BoolVar(&remove, "remove", false, "remove the clear file when the sealed one has been opened and compared")
	f.BoolVar(&force, "force", false, "write over a file that has not the same keys")
	return cmd
}

// sealing is one keytab on its way.
type sealing struct {
	o        *options
	keytabs  *keytab.Reader // as the daemon reads them
	from, to string         // paths of the clear file and the sealed one
	source   place
	target   place
	there    bool // something has the name of the sealed one

	clear      etype.Secret
	entries    []keytab.Entry
	st         unix.Stat_t // of the clear file, as it was read
	recipients []*sealed.Recipient
	identity   *sealed.Identity // of this host; nil if there is none
}

// place is a name in a directory that is open.
type place struct {
	dir  *openat.Dir
	name string
}

// sealing begins with the arguments of the command. It is to be closed.
func (o *options) sealing(args, recipients []string) (s *sealing, err error) {
	users := nss.NewDirect()
	c, _, _ := o.keytabUses(users) // whatever is wrong with it: it may say whom the daemon becomes
	s = &sealing{o: o, keytabs: o.keytabs(c, users), from: args[0], to: args[0] + ".age"}
	if len(args) > 1 {
		s.to = args[1]
	}
	for _, r := range recipients {
		one, err := sealed.ParseRecipient(r)
		if err != nil {
			return nil, fmt.Errorf("--recipient: %w", err)
		}
		s.recipients = append(s.recipients, one)
	}
	for _, path := range []*string{&s.from, &s.to} {
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	if s.source.dir, s.source.name, err = openat.Parent(s.from); err != nil {
		return nil, err
	}
	if s.target.dir, s.target.name, err = openat.Parent(s.to); err != nil {
		s.source.dir.Close()
		return nil, err
	}
	return s, nil
}

func (s *sealing) close() {
	s.clear.Zero()
	s.source.dir.Close()
	s.target.dir.Close()
}

// read returns the content of a place's file, which the caller clears, and its state.
func (p place) read() (b etype.Secret, st unix.Stat_t, err error) {
	f, err := p.dir.Open(p.name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, st, errors.New("it is a symbolic link; name the file itself")
	}
	if err != nil {
		return nil, st, err
	}
	defer f.Close()
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, st, err
	}
	b, err = keytab.Read(f)
	return b, st, err
}

// look reads the clear file, and looks at what there is in the place of the sealed one: only the same
// keys are overwritten, unless with force.
func (s *sealing) look(force bool) (err error) {
	if s.clear, s.st, err = s.source.read(); err == nil {
		s.entries, err = keytab.Parse(s.clear)
	}
	if err == nil && len(s.entries) == 0 {
		err = errors.New("it has no keys")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.from, err)
	}
	if s.identity, err = sealed.HostIdentity(s.o.credentials(), s.o.identityDir()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	former, st, err := s.target.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	defer former.Zero()
	if s.there = true; st.Dev == s.st.Dev && st.Ino == s.st.Ino {
		return fmt.Errorf("%s is the clear file itself", s.to)
	}
	if err == nil && !force {
		err = s.holds(former)
		if err != nil {
			err = fmt.Errorf("it is there already: %w; name another file, or have it overwritten (--force)", err)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.to, err)
	}
	return nil
}

// holds returns why what is sealed in content cannot be said to be the keys of the clear file.
func (s *sealing) holds(content []byte) error {
	if s.identity == nil {
		return errors.New("this host has no identity to open it with")
	}
	b, err := s.identity.Open(content)
	if err != nil {
		return err
	}
	defer b.Zero()
	entries, err := keytab.Parse(b)
	if err != nil {
		return err
	}
	same := func(a, b keytab.Entry) bool {
		return a.Principal == b.Principal && a.KVNO == b.KVNO && a.Enctype == b.Enctype && subtle.ConstantTimeCompare(a.Key, b.Key) == 1
	}
	if !slices.EqualFunc(entries, s.entries, same) {
		return errors.New("it has other keys")
	}
	return nil
}

// ours reports whether this host is among those that it is sealed to.
func (s *sealing) ours() bool {
	return slices.ContainsFunc(s.recipients, func(r *sealed.Recipient) bool { return r.String() == s.identity.Recipient().String() })
}

// say says what is to be done.
func (s *sealing) say(out io.Writer, remove bool) {
	var to []string
	for _, r := range s.recipients {
		to = append(to, r.String())
	}
	switch {
	case len(to) > 0:
	case s.identity != nil:
		to = []string{fmt.Sprintf("this host, %v, whose identity is in %s", s.identity.Recipient(), s.identity.File())}
	default:
		to = []string{"this host, whose identity is made in " + filepath.Join(s.o.identityDir(), sealed.FileName)}
	}
	over := ""
	if s.there {
		over = ", over the one that is there"
	}
	fmt.Fprintf(out, "To be sealed: %s, with %d entries\n  to %s\n  into %s%s\n", command.Shown(s.from), len(s.entries), command.Shown(strings.Join(to, "\n  and ")), command.Shown(s.to), over)
	if remove {
		fmt.Fprintf(out, "  and then %s is removed, if the sealed one can be opened and has the same keys\n", command.Shown(s.from))
	}
}

// write makes the sealed file. It is its own user's and group's that the clear one is, as far as
// those may be believed to have made it, and nobody else's to write.
func (s *sealing) write() (err error) {
	if len(s.recipients) == 0 {
		if s.identity, err = sealed.MakeHostIdentity(s.o.credentials(), s.o.identityDir()); err != nil {
			return err
		}
		s.recipients = []*sealed.Recipient{s.identity.Recipient()}
	}
	content, err := sealed.Seal(s.clear, s.recipients...)
	if err != nil {
		return err
	}
	uid := s.st.Uid
	if !slices.Contains(s.keytabs.Owners, uid) {
		uid = uint32(os.Geteuid())
	}
	put := s.target.dir.Link
	if s.there {
		put = s.target.dir.Rename
	}
	err = s.target.dir.Write(s.target.name, content, func(f *os.File) error {
		if os.Geteuid() == 0 {
			if err := f.Chown(int(uid), int(s.st.Gid)); err != nil {
				return err
			}
		}
		if err := f.Chmod(fs.FileMode(s.st.Mode & 0o755 &^ 0o022)); err != nil {
			return err
		}
		return f.Sync()
	}, put)
	if err == nil {
		err = s.target.dir.Sync()
	}
	return err
}

// verify has this host open what was written, if it can be expected to, as the daemon would.
func (s *sealing) verify() error {
	if s.identity == nil || !s.ours() {
		return nil
	}
	content, _, err := s.target.read()
	var b etype.Secret
	if err == nil {
		b, err = s.identity.Open(content)
	}
	defer b.Zero()
	if err == nil && !bytes.Equal(b, s.clear) {
		err = errors.New("it has not what was sealed")
	}
	if err == nil {
		err = s.keytabs.CheckFile("SEALED:" + s.to)
	}
	if err != nil {
		return fmt.Errorf("%s was written, and the daemon would not use it: %w", s.to, err)
	}
	return nil
}

// removeClear removes the clear file if it is still the one that was sealed.
func (s *sealing) removeClear() error {
	b, st, err := s.source.read()
	defer b.Zero()
	if err != nil {
		return err
	}
	if st.Dev != s.st.Dev || st.Ino != s.st.Ino || !bytes.Equal(b, s.clear) {
		return errors.New("it has changed meanwhile")
	}
	if err := s.source.dir.Remove(s.source.name); err != nil {
		return err
	}
	return s.source.dir.Sync()
}
