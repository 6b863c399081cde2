package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Files are those of the server's TLS, in PEM. CRL may also be in DER, and may be empty.
type Files struct{ Cert, Key, ClientCA, CRL string }

// Certificates are what the files have, read again when they change.
type Certificates struct {
	files Files
	log   *slog.Logger
	now   func() time.Time

	mu      sync.Mutex
	stamps  [4]stamp // of what was read last, good or bad
	has     material
	changed chan struct{} // closed when has is another
}

// material is what was read at one time.
type material struct {
	cert  *tls.Certificate
	roots *x509.CertPool
	crls  []*crl // nil: nobody is asked about
}

// crl is a revocation list that can be searched.
type crl struct {
	*x509.RevocationList
	revoked map[string]time.Time // by serial number
	by      []byte               // the public key of the authority in client_ca that has signed it, if one has
}

// stamp is what shows that a file is another one.
type stamp struct {
	dev, ino, size uint64
	mtime, ctime   unix.Timespec
}

// lookEvery is how often the files are looked at.
const lookEvery = time.Second

// OpenCertificates reads the files. [Certificates.Follow] reads them again.
func OpenCertificates(files Files, log *slog.Logger) (*Certificates, error) {
	c := &Certificates{files: files, log: log, now: time.Now, changed: make(chan struct{})}
	c.stamps = c.look()
	var err error
	c.has, err = files.read()
	return c, err
}

// Follow reads the files again when they have changed, until ctx ends. What cannot be used is logged,
// and what was read before stays in force.
func (c *Certificates) Follow(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c.reread()
		case <-ctx.Done():
			return
		}
	}
}

// reread reads the files if they have changed.
func (c *Certificates) reread() {
	stamps := c.look()
	c.mu.Lock()
	same := stamps == c.stamps
	c.stamps = stamps
	c.mu.Unlock()
	if same {
		return
	}
	has, err := c.files.read()
	if err != nil {
		c.log.Error("certificates are not read again: what was read before stays in force", "error", err)
		return
	}
	c.mu.Lock()
	c.has = has
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	c.log.Info("certificates were read again")
}

func (c *Certificates) look() (stamps [4]stamp) {
	for i, name := range []string{c.files.Cert, c.files.Key, c.files.ClientCA, c.files.CRL} {
		var st unix.Stat_t
		if name != "" && unix.Stat(name, &st) == nil {
			stamps[i] = stamp{st.Dev, st.Ino, uint64(st.Size), st.Mtim, st.Ctim}
		}
	}
	return stamps
}

// current returns what is in force, and what is closed when that changes.
func (c *Certificates) current() (material, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.has, c.changed
}

// maxFile bounds what is read of a file: the revocation list of a large authority.
const maxFile = 64 << 20

func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: more than %d bytes", name, maxFile)
	}
	return b, err
}

// read reads the files.
func (f *Files) read() (m material, err error) {
	cert, err := readFile(f.Cert)
	if err != nil {
		return m, fmt.Errorf("cert: %w", err)
	}
	key, err := readFile(f.Key)
	defer clear(key)
	if err != nil {
		return m, fmt.Errorf("key: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return m, fmt.Errorf("cert %s, key %s: %w", f.Cert, f.Key, err)
	}
	m.cert = &pair
	ca, err := readFile(f.ClientCA)
	if err != nil {
		return m, fmt.Errorf("client_ca: %w", err)
	}
	var authorities []*x509.Certificate
	m.roots = x509.NewCertPool()
	for block, rest := pem.Decode(ca); block != nil; block, rest = pem.Decode(rest) {
		one, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return m, fmt.Errorf("client_ca %s: %w", f.ClientCA, err)
		}
		authorities = append(authorities, one)
		m.roots.AddCert(one)
	}
	if len(authorities) == 0 {
		return m, fmt.Errorf("client_ca %s: no certificate is in it; PEM is expected", f.ClientCA)
	}
	if f.CRL == "" {
		return m, nil
	}
	b, err := readFile(f.CRL)
	if err != nil {
		return m, fmt.Errorf("crl: %w", err)
	}
	lists, err := parseCRLs(b)
	if err != nil {
		return m, fmt.Errorf("crl %s: %w", f.CRL, err)
	}
	for _, l := range lists {
		m.crls = append(m.crls, newCRL(l, authorities))
	}
	return m, nil
}

func newCRL(l *x509.RevocationList, authorities []*x509.Certificate) *crl {
	c := &crl{RevocationList: l, revoked: make(map[string]time.Time, len(l.RevokedCertificateEntries))}
	for _, e := range l.RevokedCertificateEntries {
		c.revoked[string(e.SerialNumber.Bytes())] = e.RevocationTime
	}
	for _, a := range authorities {
		if bytes.Equal(l.RawIssuer, a.RawSubject) && l.CheckSignatureFrom(a) == nil {
			c.by = a.RawSubjectPublicKeyInfo
		}
	}
	return c
}

// of reports whether an authority has signed the list.
func (c *crl) of(issuer *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, issuer.RawSubject) && (bytes.Equal(c.by, issuer.RawSubjectPublicKeyInfo) || c.CheckSignatureFrom(issuer) == nil)
}

// parseCRLs reads revocation lists, one at least.
func parseCRLs(b []byte) (list []*x509.RevocationList, err error) {
	if !bytes.Contains(b, []byte("-----BEGIN")) {
		one, err := x509.ParseRevocationList(b)
		if err != nil {
			return nil, err
		}
		return []*x509.RevocationList{one}, nil
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		one, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	if len(list) == 0 {
		return nil, errors.New("no revocation list is in it; PEM or DER is expected")
	}
	return list, nil
}

// check returns why a client's certificates, the first of them its own, are not to be believed now.
func (m *material) check(chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("there is none")
	}
	others := x509.NewCertPool()
	for _, c := range chain[1:] {
		others.AddCert(c)
	}
	chains, err := chain[0].Verify(x509.VerifyOptions{Roots: m.roots, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return err
	}
	if m.crls == nil {
		return nil
	}
	for _, one := range chains {
		if err = m.revoked(one, now); err == nil {
			return nil
		}
	}
	return err
}

// revoked returns why one of a chain does not count. Of whoever has signed the first one there must be
// a list that is in date, of the others one if there is any.
func (m *material) revoked(chain []*x509.Certificate, now time.Time) error {
	for i, c := range chain[:len(chain)-1] {
		issuer, known := chain[i+1], i > 0
		for _, l := range m.crls {
			if !l.of(issuer) {
				continue
			}
			if !l.NextUpdate.IsZero() && now.After(l.NextUpdate) {
				return fmt.Errorf("the revocation list of %q was to be replaced at %s; bring a newer one", issuer.Subject, l.NextUpdate.UTC().Format(time.RFC3339))
			}
			known = true
			if at, is := l.revoked[string(c.SerialNumber.Bytes())]; is {
				return fmt.Errorf("it was revoked at %s", at.UTC().Format(time.RFC3339))
			}
		}
		if !known {
			return fmt.Errorf("the file crl has no revocation list that %q has signed", issuer.Subject)
		}
	}
	return nil
}

// ends returns when the first of the certificates expires.
func ends(chain []*x509.Certificate) time.Time {
	end := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// names returns whom a certificate names: its DNS names, in lower case, and its URIs, none of which
// looks like the other kind.
func names(c *x509.Certificate) (list []string) {
	for _, n := range c.DNSNames {
		if !strings.ContainsAny(n, ":/") {
			list = append(list, strings.ToLower(n))
		}
	}
	for _, u := range c.URIs {
		if u.Scheme != "" && u.Host != "" {
			list = append(list, u.String())
		}
	}
	return list
}

// tls returns the configuration for connections of clients. refused is told of a certificate that is
// not believed, and from where it came.
func (c *Certificates) tls(refused func(from string, chain []*x509.Certificate, err error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			has, _ := c.current()
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Certificates:           []tls.Certificate{*has.cert},
				NextProtos:             []string{"http/1.1"},
				SessionTicketsDisabled: true,
				// Checked below, which says why not.
				ClientAuth: tls.RequireAnyClientCert,
				ClientCAs:  has.roots,
				VerifyConnection: func(s tls.ConnectionState) error {
					err := has.check(s.PeerCertificates, c.now())
					if err != nil {
						refused(hello.Conn.RemoteAddr().String(), s.PeerCertificates, err)
					}
					return err
				},
			}, nil
		},
	}
}
