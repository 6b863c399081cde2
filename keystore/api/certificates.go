package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gssproxyd/keystore/crl"
	"gssproxyd/openat"
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
	crls  []*crl.List // nil: nobody is asked about
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
	b, _, err := openat.ReadFile(name, maxFile)
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
	if m.crls, err = crl.Parse(b, authorities); err != nil {
		return m, fmt.Errorf("crl %s: %w", f.CRL, err)
	}
	return m, nil
}

// check returns until when a client's certificates, the first of them its own, are to be believed while
// the files are these, or why they are not now.
func (m *material) check(chain []*x509.Certificate, now time.Time) (until time.Time, err error) {
	if len(chain) == 0 {
		return until, errors.New("there is none")
	}
	others := x509.NewCertPool()
	for _, c := range chain[1:] {
		others.AddCert(c)
	}
	chains, err := chain[0].Verify(x509.VerifyOptions{Roots: m.roots, Intermediates: others, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return until, err
	}
	counts := chains[0]
	if m.crls != nil {
		if counts, err = crl.Check(m.crls, chains, now); err != nil {
			return until, err
		}
	}
	until = ends(counts)
	for _, l := range m.crls {
		if !l.NextUpdate.IsZero() && l.NextUpdate.Before(until) {
			until = l.NextUpdate
		}
	}
	return until, nil
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

// names returns whom a certificate names: its DNS names and its URIs, as [CertificateName] has them, none
// of which looks like the other kind.
func names(c *x509.Certificate) (list []string) {
	for _, n := range c.DNSNames {
		if name, err := CertificateName(n); err == nil && !strings.ContainsAny(n, ":/") {
			list = append(list, name)
		}
	}
	for _, u := range c.URIs {
		if name, err := CertificateName(u.String()); err == nil && strings.ContainsAny(name, ":/") {
			list = append(list, name)
		}
	}
	return list
}

// CertificateName returns how a DNS name or a URI of a certificate is compared: a DNS name in lower case,
// and so the scheme and the host of a URI. The error says what is expected.
func CertificateName(s string) (string, error) {
	if len(s) > maxPrincipal || s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", errors.New("is no name in a certificate; a DNS name or a URI is expected, in printable ASCII")
	}
	if !strings.ContainsAny(s, ":/") {
		return strings.ToLower(s), nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return "", errors.New("is no URI in a certificate; one with a host is expected, as in spiffe://example.com/web1")
	}
	u.Host = strings.ToLower(u.Host)
	return u.String(), nil
}

// tls returns the configuration for connections of clients. believed is told of one whose
// certificates are, while what it is given is open and until when; refused of a certificate that is not,
// and from where it came.
func (c *Certificates) tls(believed func(nc net.Conn, changed <-chan struct{}, until time.Time), refused func(from string, chain []*x509.Certificate, err error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			has, changed := c.current()
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Certificates:           []tls.Certificate{*has.cert},
				NextProtos:             []string{"http/1.1"},
				SessionTicketsDisabled: true,
				// Checked below, which says why not.
				ClientAuth: tls.RequireAnyClientCert,
				ClientCAs:  has.roots,
				VerifyConnection: func(s tls.ConnectionState) error {
					until, err := has.check(s.PeerCertificates, c.now())
					if err != nil {
						refused(hello.Conn.RemoteAddr().String(), s.PeerCertificates, err)
						return err
					}
					believed(hello.Conn, changed, until)
					return nil
				},
			}, nil
		},
	}
}
