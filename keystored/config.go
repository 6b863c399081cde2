package main

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gssproxyd/conf"
	"gssproxyd/keystore/api"
	"gssproxyd/keystore/delivery"
	"gssproxyd/keystore/etcd"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/openat"
)

// config is what keystored.conf says.
type config struct {
	file     string
	warnings []string

	bolt string // the file; empty: etcd
	etcd struct {
		endpoints          []string
		ca, cert, key      string
		user, passwordFile string
		prefix             string
	}
	name         string // of this instance
	listen       string // empty: over the socket only
	tls          api.Files
	signers      []ed25519.PublicKey
	stateDir     string
	socket       string
	audit        string
	auditFailure string
	admins       []api.Admin
	realms       map[string]*realm // whose keys are rotated, by name
}

// What becomes of a change that the audit log cannot have.
const (
	auditCount  = "count"  // it is made
	auditRefuse = "refuse" // it is not
)

// sections says which sections there are.
const sections = "[keystored], [admin/NAME] or [realm/NAME] is expected"

// load reads the configuration. The error is a [*conf.Errors], and what could be read is returned with
// it.
func load(file string) (*config, error) {
	c := &config{file: file, stateDir: defaultStateDir, socket: defaultSocket, auditFailure: auditCount, realms: make(map[string]*realm)}
	c.etcd.prefix = "/keystored"
	f := conf.ReadFile(file, sections)
	var own *conf.Section
	first := make(map[string]*conf.Section)
	for i := range f.Sections {
		s := &f.Sections[i]
		name := strings.ToLower(s.Name)
		if before := first[name]; before != nil {
			f.Fail(s, fmt.Sprintf("[%s] is there twice: line %d already begins it", s.Name, before.Line()), "each section is expected once", "put its lines there")
			continue
		}
		first[name] = s
		admin, isAdmin := strings.CutPrefix(s.Name, "admin/")
		realm, isRealm := strings.CutPrefix(s.Name, "realm/")
		switch {
		case name == "keystored":
			own = s
			f.Apply(s, c.keys())
		case isAdmin && admin != "":
			c.admin(f, s, admin)
		case isRealm && realm != "":
			c.realm(f, s, realm)
		case s.Name == "":
			f.Fail(s, "a key before the first section", sections, "put it into a section")
		default:
			f.Fail(s, fmt.Sprintf("unknown section [%s]", s.Name), sections, conf.DidYouMean(s.Name, []string{"keystored", "admin/NAME", "realm/NAME"}))
		}
	}
	if own == nil && f.Err() == nil {
		f.Fail(nil, "there is no section [keystored]", "", "write it, with backend = bolt:/var/lib/keystored/store.db")
	}
	if own != nil {
		c.together(f, own)
	}
	if c.name == "" {
		c.name, _ = os.Hostname()
	}
	c.warnings = f.Warnings()
	return c, f.Err()
}

// keys are those of [keystored].
func (c *config) keys() []conf.Key {
	return []conf.Key{
		{Name: "backend", Required: true, Set: c.setBackend},
		{Name: "etcd_ca", Set: path(&c.etcd.ca)},
		{Name: "etcd_cert", Set: path(&c.etcd.cert)},
		{Name: "etcd_key", Set: path(&c.etcd.key)},
		{Name: "etcd_user", Set: text(&c.etcd.user)},
		{Name: "etcd_password_file", Set: path(&c.etcd.passwordFile)},
		{Name: "etcd_prefix", Set: path(&c.etcd.prefix)},
		{Name: "name", Set: text(&c.name)},
		{Name: "listen", Set: c.setListen},
		{Name: "cert", Set: path(&c.tls.Cert)},
		{Name: "key", Set: path(&c.tls.Key)},
		{Name: "client_ca", Set: path(&c.tls.ClientCA)},
		{Name: "crl", Set: path(&c.tls.CRL)},
		{Name: "signer", Repeat: true, Set: c.setSigner},
		{Name: "state_dir", Set: path(&c.stateDir)},
		{Name: "socket", Set: path(&c.socket)},
		{Name: "audit", Set: path(&c.audit)},
		{Name: "audit_failure", Set: func(s string) error {
			if c.auditFailure = s; s != auditCount && s != auditRefuse {
				return errors.New("is none of count and refuse")
			}
			return nil
		}},
	}
}

// path takes an absolute path.
func path(dst *string) func(string) error {
	return func(s string) error {
		if !filepath.IsAbs(s) {
			return errors.New("is not absolute; a path that begins with / is expected")
		}
		*dst = filepath.Clean(s)
		return nil
	}
}

func text(dst *string) func(string) error {
	return func(s string) error { *dst = s; return nil }
}

func (c *config) setBackend(s string) error {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "bolt":
		return path(&c.bolt)(rest)
	case "etcd":
		for one := range strings.SplitSeq(rest, ",") {
			one = strings.TrimSpace(one)
			u, err := url.Parse(one)
			if err != nil || u.Scheme != "https" && u.Scheme != "http" && u.Scheme != "unix" || u.Scheme != "unix" && u.Host == "" {
				return fmt.Errorf("has %q in it; URLs are expected, separated by commas, as in etcd:https://etcd1.example.com:2379", one)
			}
			c.etcd.endpoints = append(c.etcd.endpoints, one)
		}
		return nil
	}
	return errors.New("is no backend; bolt:/FILE or etcd:URL,URL is expected")
}

func (c *config) setListen(s string) error {
	if _, port, err := net.SplitHostPort(s); err != nil || port == "" {
		return errors.New("is no address; ADDRESS:PORT is expected, as in 192.0.2.1:8443, or :8443 for all addresses")
	}
	c.listen = s
	return nil
}

func (c *config) setSigner(s string) error {
	k, err := delivery.ParseSigner(s)
	if err != nil {
		return errors.New("is no signer; what keystored init or keystored master show prints is expected")
	}
	c.signers = append(c.signers, k)
	return nil
}

// together looks at what only counts with something else.
func (c *config) together(f *conf.File, s *conf.Section) {
	files := []struct{ key, value string }{{"cert", c.tls.Cert}, {"key", c.tls.Key}, {"client_ca", c.tls.ClientCA}}
	for _, one := range files {
		if c.listen != "" && one.value == "" {
			f.Fail(s, "listen is set, and "+one.key+" is not", "cert, key and client_ca are expected with it", "add "+one.key+" = /FILE")
		}
		if c.listen == "" && one.value != "" {
			f.Fail(s, one.key+" has no effect without listen", "", "add listen = :8443, or remove the line")
		}
	}
	if c.auditFailure == auditRefuse && c.audit == "" {
		f.Fail(s, "audit_failure = refuse has no effect without audit", "the file of the audit log is expected too", "add audit = /FILE, or remove the line")
	}
	isEtcd := len(c.etcd.endpoints) > 0
	for _, one := range []struct{ key, value string }{{"etcd_ca", c.etcd.ca}, {"etcd_cert", c.etcd.cert}, {"etcd_key", c.etcd.key}, {"etcd_user", c.etcd.user}, {"etcd_password_file", c.etcd.passwordFile}} {
		if one.value != "" && !isEtcd {
			f.Fail(s, one.key+" has no effect without backend = etcd:...", "", "remove the line")
		}
	}
	if (c.etcd.cert == "") != (c.etcd.key == "") {
		f.Fail(s, "etcd_cert and etcd_key go together, and one of them is missing", "", "add it")
	}
	if (c.etcd.user == "") != (c.etcd.passwordFile == "") {
		f.Fail(s, "etcd_user and etcd_password_file go together, and one of them is missing", "", "add it")
	}
	if (c.etcd.user != "" || c.etcd.ca != "") && slices.ContainsFunc(c.etcd.endpoints, exposed) {
		f.Fail(s, "a backend at an http URL of another host is not asked by TLS: etcd_ca has no effect, and a password would go there in the clear", "https URLs are expected", "correct backend")
	}
	if isEtcd && c.etcd.ca == "" && slices.ContainsFunc(c.etcd.endpoints, func(u string) bool { return strings.HasPrefix(u, "https:") }) {
		f.Fail(s, "etcd_ca is missing: who answers at an https URL would not be known", "", "add etcd_ca = /FILE")
	}
}

// exposed reports whether an endpoint is asked in the clear over a network.
func exposed(endpoint string) bool {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" || u.Hostname() == "localhost" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return ip == nil || !ip.IsLoopback()
}

// admin reads a section [admin/NAME].
func (c *config) admin(f *conf.File, s *conf.Section, name string) {
	a := api.Admin{Name: name}
	f.Apply(s, adminKeys(&a))
	about := slices.ContainsFunc(a.Verbs, func(v api.Verb) bool { return v != api.Hosts && v != api.Master })
	switch {
	case a.Certificate == "" && a.UID == nil:
		f.Fail(s, fmt.Sprintf("[%s] names nobody", s.Name), "certificate or uid is expected", "add certificate = NAME, the DNS or URI name in it, or uid = N")
	case about && len(a.Principals) == 0:
		f.Fail(s, fmt.Sprintf("[%s] has no principals", s.Name), "the verbs are about some", "add principals = HTTP/*@EXAMPLE.COM; * stands for any characters")
	}
	c.admins = append(c.admins, a)
}

// adminKeys are those of [admin/NAME].
func adminKeys(a *api.Admin) []conf.Key {
	return []conf.Key{
		{Name: "certificate", Set: func(s string) (err error) {
			a.Certificate, err = api.CertificateName(s)
			return err
		}},
		{Name: "uid", Set: func(s string) error {
			uid, err := uidOf(s)
			a.UID = &uid
			return err
		}},
		{Name: "principals", Repeat: true, Set: func(s string) error {
			a.Principals = append(a.Principals, strings.FieldsFunc(s, separates)...)
			return nil
		}},
		{Name: "verbs", Repeat: true, Required: true, Set: func(s string) error {
			var known []string
			for _, v := range api.Verbs {
				known = append(known, string(v))
			}
			for _, word := range strings.FieldsFunc(s, separates) {
				if !slices.Contains(known, word) {
					return fmt.Errorf("has %q in it; %s are expected", word, strings.Join(known, ", "))
				}
				a.Verbs = append(a.Verbs, api.Verb(word))
			}
			return nil
		}},
	}
}

func separates(r rune) bool { return r == ',' || r == ' ' || r == '\t' }

// uidOf is a uid that is given as a number or as a name.
func uidOf(s string) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(n), nil
	}
	u, err := user.Lookup(s)
	if err != nil {
		return 0, errors.New("is no user of this host; a uid or a name is expected")
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err
}

// etcdConfig is how the cluster is reached.
func (c *config) etcdConfig() (etcd.Config, error) {
	e := etcd.Config{Endpoints: c.etcd.endpoints, Username: c.etcd.user, Prefix: c.etcd.prefix}
	if c.etcd.passwordFile != "" {
		b, err := readSecret(c.etcd.passwordFile)
		if err != nil {
			return e, fmt.Errorf("etcd_password_file: %w", err)
		}
		defer b.Zero()
		if e.Password = strings.TrimRight(string(b), "\n"); e.Password == "" {
			return e, fmt.Errorf("etcd_password_file: %s is empty; the password of etcd_user is expected, alone", c.etcd.passwordFile)
		}
	}
	if c.etcd.ca == "" {
		return e, nil
	}
	b, err := os.ReadFile(c.etcd.ca)
	if err != nil {
		return e, fmt.Errorf("etcd_ca: %w", err)
	}
	e.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: x509.NewCertPool()}
	if !e.TLS.RootCAs.AppendCertsFromPEM(b) {
		return e, fmt.Errorf("etcd_ca %s: no certificate is in it; PEM is expected", c.etcd.ca)
	}
	if c.etcd.cert == "" {
		return e, nil
	}
	// For each connection, so that new files are taken.
	cert, key := c.etcd.cert, c.etcd.key
	if _, err := keyPair(cert, key); err != nil {
		return e, err
	}
	e.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return keyPair(cert, key) }
	return e, nil
}

// keyPair reads what etcd is shown.
func keyPair(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("etcd_cert: %w", err)
	}
	key, err := readSecret(keyFile)
	if err != nil {
		return nil, fmt.Errorf("etcd_key: %w", err)
	}
	defer key.Zero()
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("etcd_cert, etcd_key: %w", err)
	}
	return &pair, nil
}

// maxSecret bounds the file of a secret.
const maxSecret = 64 << 10

// readSecret reads a file that has a secret: root's or this program's user's, where nobody else can put
// another one, and which a group may read at most. The caller zeroes what is in it.
func readSecret(file string) (etype.Secret, error) {
	dir, name, err := openat.FindKept(file)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err := dir.Open(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("%s is no regular file", file)
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()), st.Mode&0o027 != 0:
		return nil, fmt.Errorf("%s belongs to uid %d with mode %04o, so others may know or write the secret in it; root or uid %d is expected, with 0600, or 0640 for a group that may know it (chown, chmod), and another secret", file, st.Uid, st.Mode&0o7777, os.Geteuid())
	case st.Size > maxSecret:
		return nil, fmt.Errorf("%s has %d bytes, at most %d are expected", file, st.Size, maxSecret)
	}
	b := make(etype.Secret, st.Size)
	if _, err := io.ReadFull(f, b); err != nil {
		b.Zero()
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return b, nil
}
