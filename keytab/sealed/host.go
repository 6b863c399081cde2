package sealed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"gssproxyd/openat"
)

// The host's identity is in a file as age-keygen writes it: lines of comments, which begin with #,
// and one line with the identity, "AGE-SECRET-KEY-1...".

// FileName is the name of the file with the host's identity, in its directory.
const FileName = "host.age"

// maxFileSize is how long such a file may be.
const maxFileSize = 64 << 10

// HostIdentity returns the identity of this host: that in the directory credentials, of a service
// manager's ($CREDENTIALS_DIRECTORY), if it has one there, and else that in the state directory. The
// error is [fs.ErrNotExist] if there is none. Who opens something calls this: nothing can have been
// sealed to an identity that is not there.
//
// A file that others may have read, or have written, is refused. Root, who may look at the state
// directory of another user, takes what is that user's.
func HostIdentity(credentials, stateDir string) (*Identity, error) {
	if credentials != "" {
		i, err := Credential(credentials)
		if !errors.Is(err, fs.ErrNotExist) {
			return i, err
		}
	}
	i, err := read(filepath.Join(stateDir, FileName), 0o077, ownersOf(stateDir)...)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this host has no identity: %w; gssproxyd keytab recipient makes it", err)
	}
	return i, err
}

// Credential returns the identity that is in a service manager's directory. The error is
// [fs.ErrNotExist] if there is none.
func Credential(dir string) (*Identity, error) {
	// Of root's files there a group may read: so systemd shows that it gave the service's user the
	// right to.
	return read(filepath.Join(dir, FileName), 0o027)
}

// MakeHostIdentity is HostIdentity, and makes one in the state directory if there is none: complete
// before it has its name, the state directory's owner's, and for him alone. Of several who do that at
// once all return the same.
func MakeHostIdentity(credentials, stateDir string) (*Identity, error) {
	i, err := HostIdentity(credentials, stateDir)
	if !errors.Is(err, fs.ErrNotExist) {
		return i, err
	}
	dir, name, err := openat.FindKept(filepath.Join(stateDir, FileName), ownersOf(stateDir)...)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the identity of this host would be in the daemon's state directory: %w; start the daemon once, or name its directory (--state-dir)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("identity of this host: %s: %w", filepath.Join(stateDir, FileName), err)
	}
	defer dir.Close()
	_, content, err := generate()
	if err != nil {
		return nil, err
	}
	defer clear(content)
	st := dir.Stat()
	err = dir.Write(name, content, func(f *os.File) error {
		if os.Geteuid() == 0 && st.Uid != 0 { // the daemon's user is to read it
			if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
				return err
			}
		}
		return f.Sync()
	}, dir.Link)
	if err == nil {
		err = dir.Sync()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) { // then another's is the one
		return nil, fmt.Errorf("make the identity of this host: %w", err)
	}
	return HostIdentity("", stateDir)
}

// generate makes an identity, and what a file of it has in it, which the caller clears.
func generate() (secret *age.X25519Identity, content []byte, err error) {
	if secret, err = age.GenerateX25519Identity(); err != nil {
		return nil, nil, err
	}
	return secret, fmt.Appendf(nil, "# created: %s\n# public key: %s\n%s\n", time.Now().UTC().Format(time.RFC3339), secret.Recipient(), secret), nil
}

// NewIdentity makes an identity that is to be kept elsewhere, in a file that does not exist, with mode
// 0600, and returns whom to seal to. The file is on the disk then. It may be on a medium that knows no
// links and no owners.
func NewIdentity(path string) (_ *Recipient, err error) {
	secret, content, err := generate()
	if err != nil {
		return nil, err
	}
	defer clear(content)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make an identity: %w", err)
	}
	if _, err = f.Write(content); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		var dir *os.File
		if dir, err = os.Open(filepath.Dir(path)); err == nil {
			err = errors.Join(dir.Sync(), dir.Close())
		}
	}
	if err != nil {
		os.Remove(path)
		return nil, fmt.Errorf("make an identity: %w", err)
	}
	return &Recipient{secret.Recipient()}, nil
}

// ReadIdentity returns the identity in a file, which nobody else may have read or written.
func ReadIdentity(path string) (*Identity, error) {
	i, err := readFile(path, 0o077)
	if err != nil {
		return nil, fmt.Errorf("identity in %s: %w", path, err)
	}
	return i, nil
}

// ownersOf are who may own what is in a directory, beside root and this program's user: to root, its
// owner.
func ownersOf(dir string) []uint32 {
	var st unix.Stat_t
	if os.Geteuid() != 0 || unix.Stat(dir, &st) != nil {
		return nil
	}
	return []uint32{st.Uid}
}

// read reads the file of this host's identity.
func read(path string, others uint32, owners ...uint32) (*Identity, error) {
	i, err := readFile(path, others, owners...)
	if err == nil {
		return i, nil
	}
	err = fmt.Errorf("identity of this host: %s: %w", path, err)
	if _, known := errors.AsType[*knownError](err); known {
		err = fmt.Errorf("%w; remove it to have one made, and seal again what was sealed to it", err)
	}
	return nil, err
}

// knownError says that an identity is known to others, perhaps.
type knownError struct{ text string }

func (e *knownError) Error() string { return e.text }

// readFile reads an identity's file, which may have none of the bits of others in its mode.
func readFile(path string, others uint32, owners ...uint32) (*Identity, error) {
	dir, name, err := openat.FindKept(path, owners...)
	if pe, ok := errors.AsType[*fs.PathError](err); ok && pe.Path == path {
		err = pe.Err
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err := dir.Open(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, pe.Err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	mayOwn := st.Uid == 0 || st.Uid == uint32(os.Geteuid())
	for _, uid := range owners {
		mayOwn = mayOwn || st.Uid == uid
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, errors.New("it is not a regular file; remove it")
	case !mayOwn:
		return nil, &knownError{fmt.Sprintf("it belongs to uid %d, who knows the identity", st.Uid)}
	case st.Mode&others != 0:
		return nil, &knownError{fmt.Sprintf("it has mode %04o, expected 0600: others may know the identity", st.Mode&0o7777)}
	case st.Size > maxFileSize:
		return nil, fmt.Errorf("it has %d bytes, expected at most %d: it is no identity of age", st.Size, maxFileSize)
	}
	b := make([]byte, st.Size)
	defer clear(b)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, err
	}
	secret, err := parse(b)
	if err != nil {
		return nil, err
	}
	return &Identity{secret: secret, file: path}, nil
}

// parse reads what age-keygen writes. Errors have nothing of it in them but numbers of lines.
func parse(b []byte) (secret *age.X25519Identity, err error) {
	n := 0
	for line := range bytes.Lines(b) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if secret != nil {
			return nil, fmt.Errorf("line %d is a second identity; one is expected, for it says whom to seal to", n)
		}
		if secret, err = age.ParseX25519Identity(string(line)); err != nil {
			what := "is no identity"
			if strings.HasPrefix(string(line), "AGE-SECRET-KEY-1") {
				what = "is a damaged identity"
			}
			return nil, fmt.Errorf("line %d %s: AGE-SECRET-KEY-1... is expected, as age-keygen writes it", n, what)
		}
	}
	if secret == nil {
		return nil, errors.New("it has no identity: a line AGE-SECRET-KEY-1... is expected, as age-keygen writes it")
	}
	return secret, nil
}
