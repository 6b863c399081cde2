package stores

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/conf"
	"gssproxyd/keystore/crl"
	"gssproxyd/openat"
)

// files are what those have that a store's section names: the helper has no file.
type files struct {
	CA   []byte `json:"ca,omitempty"`
	Cert []byte `json:"cert,omitempty"`
	Key  []byte `json:"key,omitempty"`
	CRL  []byte `json:"crl,omitempty"`
}

func (f *files) same(g *files) bool {
	return slices.Equal(f.CA, g.CA) && slices.Equal(f.Cert, g.Cert) && slices.Equal(f.Key, g.Key) && slices.Equal(f.CRL, g.CRL)
}

// maxPEM bounds the file of a certificate or a key, maxCRL that of a revocation list.
const (
	maxPEM = 256 << 10
	maxCRL = 1 << 20
)

// FileProblem is what is wrong with a file of a store's section.
type FileProblem struct {
	Key  string // of the section
	Text string
	Hint string
}

func (p *FileProblem) Error() string { return p.Key + ": " + p.Text }

// CheckFiles returns what is wrong with the files of a store's section now.
func CheckFiles(k *conf.KeyStore, now time.Time) (list []*FileProblem) {
	f, list := readFiles(k)
	if len(list) == 0 {
		list = f.check(now)
	}
	return list
}

// readFiles reads the files of a store's section. They fit together if there is no problem.
func readFiles(k *conf.KeyStore) (f *files, list []*FileProblem) {
	f = new(files)
	read := func(key, path string, most int64, to *[]byte, hint string) bool {
		b, _, err := openat.ReadFile(path, most)
		if err != nil {
			list = append(list, &FileProblem{key, err.Error(), hint})
		}
		*to = b
		return err == nil
	}
	problem := func(key, hint, format string, args ...any) {
		list = append(list, &FileProblem{key, fmt.Sprintf(format, args...), hint})
	}
	const ca = "put the certificates of the store's authority there, in PEM"
	if read("ca", k.CA, maxPEM, &f.CA, ca) && len(f.authorities()) == 0 {
		problem("ca", ca, "%s has no certificate in it", k.CA)
	}
	const pair = "put this host's certificate and its key there, in PEM, for the daemon's user to read"
	cert, key := read("cert", k.Cert, maxPEM, &f.Cert, pair), read("key", k.Key, maxPEM, &f.Key, pair)
	if cert && key {
		if _, err := tls.X509KeyPair(f.Cert, f.Key); err != nil {
			problem("cert", pair, "%s, with the key %s: %v", k.Cert, k.Key, err)
		}
	}
	const lists = "bring the revocation list of the store's authority there, in PEM or DER"
	if k.CRL != "" && read("crl", k.CRL, maxCRL, &f.CRL, lists) {
		if _, err := crl.Parse(f.CRL, nil); err != nil {
			problem("crl", lists, "%s: %v", k.CRL, err)
		}
	}
	return f, list
}

// check returns what makes files that fit together useless at a time.
func (f *files) check(now time.Time) (list []*FileProblem) {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	const clock = "; it is %s by the clock of this host"
	pair, err := tls.X509KeyPair(f.Cert, f.Key)
	switch {
	case err != nil:
		list = append(list, &FileProblem{"cert", err.Error(), "put this host's certificate and its key there"})
	case now.After(pair.Leaf.NotAfter):
		list = append(list, &FileProblem{"cert", fmt.Sprintf("this host's certificate has ended at %s"+clock, at(pair.Leaf.NotAfter), at(now)),
			"get a new one, or set the clock if it is wrong; the keys that are here stay in use, and no new ones come"})
	case now.Before(pair.Leaf.NotBefore):
		list = append(list, &FileProblem{"cert", fmt.Sprintf("this host's certificate is good from %s on"+clock, at(pair.Leaf.NotBefore), at(now)),
			"set the clock if it is wrong; the keys that are here stay in use, and no new ones come"})
	}
	if f.CRL == nil {
		return list
	}
	lists, err := crl.Parse(f.CRL, f.authorities())
	if err != nil {
		return append(list, &FileProblem{"crl", err.Error(), "bring the revocation list of the store's authority there"})
	}
	for _, l := range lists {
		if !l.NextUpdate.IsZero() && now.After(l.NextUpdate) {
			list = append(list, &FileProblem{"crl", fmt.Sprintf("the revocation list of %q was to be replaced at %s"+clock, l.Issuer, at(l.NextUpdate), at(now)), "bring a newer one"})
		}
	}
	return list
}

// authorities are those of ca that can be read.
func (f *files) authorities() (list []*x509.Certificate) {
	for block, rest := pem.Decode(f.CA); block != nil; block, rest = pem.Decode(rest) {
		if one, err := x509.ParseCertificate(block.Bytes); err == nil {
			list = append(list, one)
		}
	}
	return list
}

// config returns what to connect with.
func (f *files) config() (*tls.Config, error) {
	cert, err := tls.X509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("cert and key: %w", err)
	}
	authorities, roots := f.authorities(), x509.NewCertPool()
	if len(authorities) == 0 {
		return nil, errors.New("ca: there is no certificate in it")
	}
	for _, one := range authorities {
		roots.AddCert(one)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{cert}}
	if f.CRL != nil {
		lists, err := crl.Parse(f.CRL, authorities)
		if err != nil {
			return nil, fmt.Errorf("crl: %w", err)
		}
		c.VerifyConnection = func(s tls.ConnectionState) error {
			if _, err := crl.Check(lists, s.VerifiedChains, time.Now()); err != nil {
				return &revokedError{err}
			}
			return nil
		}
	}
	return c, nil
}

// revokedError is why a store's certificate is not believed that is good otherwise.
type revokedError struct{ error }

func (e *revokedError) Error() string { return "the store's certificate: " + e.error.Error() }

// stamp tells one state of a file from another.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// stamps are those of all files of all stores.
func (s *Stores) stamps() (list []stamp) {
	for _, st := range s.sorted() {
		for _, path := range []string{st.CA, st.Cert, st.Key, st.CRL} {
			var one stamp
			var f unix.Stat_t
			if path != "" && unix.Stat(path, &f) == nil {
				one = stamp{uint64(f.Dev), f.Ino, f.Size, f.Mtim, f.Ctim}
			}
			list = append(list, one)
		}
	}
	return list
}

// filesOf returns what the files of a store have. Those that were read before count while what is there
// now cannot be used: a certificate and its key are not replaced in one moment. wrong is why the store
// cannot be asked.
func (s *Stores) filesOf(st *store) (f *files, wrong *FileProblem) {
	f, list := readFiles(st.KeyStore)
	s.mu.Lock()
	said := ""
	if len(list) > 0 {
		wrong, said = list[0], list[0].Error()
	}
	former := st.wrong
	if st.wrong = said; wrong == nil {
		st.good = f
	} else if st.good != nil {
		f, wrong = st.good, nil
	}
	s.mu.Unlock()
	if said != "" && said != former && wrong == nil {
		s.line(slog.LevelWarn, "files of a key store cannot be used: those that were read before stay in use", "store", st.Name, "error", said, "hint", list[0].Hint)
	}
	if wrong == nil {
		if list = f.check(s.o.Now()); len(list) > 0 && list[0].Key == "cert" {
			wrong = list[0]
		}
	}
	return f, wrong
}
