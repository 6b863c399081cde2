package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Forest is several realms on one machine, each with a KDC and a database of its own, described by
// one krb5.conf. What a Realm does with programs and files it does too; it has no KDC beside those
// of its members, and none of the tools.
type Forest struct {
	*Realm
	Members []*Member
}

// Member is one realm of a Forest. Its hosts are those of the domain with its name in small
// letters.
type Member struct {
	Name string
	Port int // of the KDC on 127.0.0.1, UDP and TCP

	forest *Forest
	dir    string
	kdc    *Process
}

// NewForest raises the named realms for one test and takes them down with it. Nothing trusts
// anything yet.
func NewForest(t testing.TB, names ...string) *Forest {
	t.Helper()
	Require(t)
	f, err := UpForest(context.Background(), names...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// UpForest raises the named realms.
func UpForest(ctx context.Context, names ...string) (f *Forest, err error) {
	if err := Missing(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "gssforest-")
	if err != nil {
		return nil, err
	}
	f = &Forest{Realm: &Realm{Dir: dir, Conf: filepath.Join(dir, "krb5.conf")}}
	defer func() {
		if err != nil {
			f.Close()
			f = nil
		}
	}()
	if err := os.Chmod(dir, 0o755); err != nil {
		return f, err
	}
	for _, name := range names {
		f.Members = append(f.Members, &Member{Name: name, forest: f, dir: filepath.Join(dir, name)})
	}
	for _, m := range f.Members {
		if err := m.start(ctx); err != nil {
			return f, fmt.Errorf("realm %s: %w", m.Name, err)
		}
	}
	return f, f.Configure("")
}

// Configure writes the krb5.conf that clients and KDCs read, with the sections of more at its end.
// KDCs that run notice a change sooner or later: Restart them to be sure.
func (f *Forest) Configure(more string, libdefaults ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "[libdefaults]\n  default_realm = %s\n  dns_lookup_kdc = false\n  dns_lookup_realm = false\n"+
		"  dns_canonicalize_hostname = false\n  rdns = false\n  forwardable = true\n", f.Members[0].Name)
	for _, l := range libdefaults {
		fmt.Fprintf(&b, "  %s\n", l)
	}
	b.WriteString("\n[realms]\n")
	for _, m := range f.Members {
		fmt.Fprintf(&b, "  %s = {\n    kdc = 127.0.0.1:%d\n  }\n", m.Name, m.Port)
	}
	b.WriteString("\n[domain_realm]\n")
	for _, m := range f.Members {
		fmt.Fprintf(&b, "  .%s = %s\n", strings.ToLower(m.Name), m.Name)
	}
	b.WriteString("\n" + more)
	return os.WriteFile(f.Conf, []byte(b.String()), 0o644)
}

// Member returns the realm of that name.
func (f *Forest) Member(name string) *Member {
	for _, m := range f.Members {
		if m.Name == name {
			return m
		}
	}
	panic("lab: no realm " + name)
}

// Trust lets principals of one realm get tickets for another one: krbtgt/TO@FROM, with the same key
// on both sides.
func (f *Forest) Trust(from, to string) error {
	name := "krbtgt/" + to + "@" + from
	for _, m := range []*Member{f.Member(from), f.Member(to)} {
		if err := m.Kadmin("addprinc", "-pw", "trust "+from+" "+to, "-e", strings.Join(salted(AES), ","), name); err != nil {
			return err
		}
	}
	return nil
}

func salted(enctypes []string) (list []string) {
	for _, e := range enctypes {
		list = append(list, e+":normal")
	}
	return list
}

// start makes the database and runs the KDC on a free port.
func (m *Member) start(ctx context.Context) error {
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return err
	}
	var err error
	for range 5 {
		if m.Port, err = FreePort(); err != nil {
			return err
		}
		conf := strings.ReplaceAll(fmt.Sprintf(kdcConf, m.dir, m.Port), Name, m.Name)
		if err = errors.Join(os.WriteFile(filepath.Join(m.dir, "kdc.conf"), []byte(conf), 0o644), m.forest.Configure("")); err != nil {
			return err
		}
		if _, err = os.Stat(filepath.Join(m.dir, "stash")); err != nil {
			if _, err = m.forest.Run(Root, m.env(), "/usr/sbin/kdb5_util", "create", "-s", "-r", m.Name, "-P", "master"); err != nil {
				return err
			}
		}
		if err = m.run(); err == nil || ctx.Err() != nil {
			break
		}
	}
	return errors.Join(err, ctx.Err())
}

func (m *Member) env() []string {
	return []string{"KRB5_KDC_PROFILE=" + filepath.Join(m.dir, "kdc.conf")}
}

func (m *Member) run() (err error) {
	m.kdc, err = m.forest.Start(m.forest.Command(Root, m.env(), "/usr/sbin/krb5kdc", "-n", "-r", m.Name), m.forest.Path("krb5kdc-"+m.Name+".out"))
	if err != nil {
		return err
	}
	return m.kdc.wait(Patience, "answer", func() bool { return Listening(m.Port) })
}

// Restart ends the KDC and runs it again, on the same port, with what Configure wrote.
func (m *Member) Restart() error {
	m.kdc.Stop()
	return m.run()
}

// StopKDC ends the KDC; Restart brings it back.
func (m *Member) StopKDC() { m.kdc.Stop() }

// Kadmin runs one query of kadmin.local.
func (m *Member) Kadmin(query ...string) error {
	out, err := m.forest.Run(Root, m.env(), "/usr/sbin/kadmin.local", append([]string{"-r", m.Name}, query...)...)
	if err == nil && strings.Contains(out, " while ") {
		err = fmt.Errorf("kadmin.local %s: %s", strings.Join(query, " "), out)
	}
	return err
}

// AddPrincipal makes a principal with a password, as Realm.AddPrincipal does.
func (m *Member) AddPrincipal(name, password string, options ...string) error {
	return m.Kadmin(append(append([]string{"addprinc", "-pw", password}, options...), name)...)
}

// RandKey makes a service principal with random keys of the enctypes, or all of AES.
func (m *Member) RandKey(name string, enctypes ...string) error {
	if len(enctypes) == 0 {
		enctypes = AES
	}
	return m.Kadmin("addprinc", "-randkey", "-e", strings.Join(salted(enctypes), ","), name)
}

// Keytab writes the keys of the principals to a new keytab, root's, mode 0600, and returns its
// path.
func (m *Member) Keytab(base string, principals ...string) (string, error) {
	p := m.forest.Path(base)
	if err := m.Kadmin(append([]string{"ktadd", "-norandkey", "-k", p}, principals...)...); err != nil {
		return "", err
	}
	return p, errors.Join(m.forest.secrets.addKeytab(p), os.Chmod(p, 0o600))
}
