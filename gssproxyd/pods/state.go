package pods

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"

	"gssproxyd/openat"
)

// suffix is what the name of a registration's file ends with, behind the name of its directory.
const suffix = ".pod"

// maxFile is more than a registration takes.
const maxFile = 16 << 10

// state is the directory of registrations' files.
type state struct{ dir *openat.Dir }

// openState opens the directory, which nobody but root and this program's user may change, and makes
// it if it is not there.
func openState(path string) (*state, error) {
	if err := makeDir(path, 0o700, math.MaxInt); err != nil {
		return nil, err
	}
	dir, err := openat.OpenDir(path)
	if err != nil {
		return nil, err
	}
	if st := dir.Stat(); !dir.Closed() || st.Mode&0o077 != 0 {
		dir.Close()
		return nil, fmt.Errorf("directory %s: it has to be this daemon's alone (mode 0700), and so has the way to it", path)
	}
	return &state{dir}, nil
}

func (s *state) close() { s.dir.Close() }

// write writes a registration: all of it is there afterwards, or nothing is.
func (s *state) write(r *Registration) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.dir.Write(DirName(r.UID, r.Handle)+suffix, append(b, '\n'), func(*os.File) error { return nil }, s.dir.Rename)
}

func (s *state) remove(r *Registration) error {
	err := s.dir.Remove(DirName(r.UID, r.Handle) + suffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// read returns the registrations, and an error for each that is none: nothing is believed of those.
func (s *state) read() (all []Registration, bad []error, err error) {
	self, err := s.dir.Self()
	if err != nil {
		return nil, nil, err
	}
	defer self.Close()
	names, err := self.Readdirnames(-1)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		switch {
		case !strings.HasSuffix(name, suffix):
			if strings.HasPrefix(name, ".") && strings.Contains(name, suffix+".") { // from a daemon that was killed
				s.dir.Remove(name)
			}
		case len(all) == Max:
			bad = append(bad, fmt.Errorf("%s: there are more than %d", name, Max))
		default:
			r, err := s.readOne(name)
			if err != nil {
				bad = append(bad, fmt.Errorf("%s: %w", name, err))
				continue
			}
			all = append(all, r)
		}
	}
	return all, bad, nil
}

func (s *state) readOne(name string) (r Registration, err error) {
	b, err := s.dir.ReadFile(name, maxFile)
	if err != nil {
		return r, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	err = dec.Decode(&r)
	if err == nil && dec.More() {
		err = errors.New("there is something behind the registration")
	}
	if err == nil {
		err = r.Check()
	}
	if err == nil && name != DirName(r.UID, r.Handle)+suffix {
		err = errors.New("it has the name of another registration")
	}
	return r, err
}
