package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// AES are the enctypes a service gets when none are named, strongest last, as kadmin spells them.
var AES = []string{"aes128-cts-hmac-sha1-96", "aes256-cts-hmac-sha1-96", "aes128-cts-hmac-sha256-128", "aes256-cts-hmac-sha384-192"}

// EnctypeName is kadmin's name of an enctype number, empty if the lab has no use for it.
func EnctypeName(n int) string {
	switch n {
	case 17, 18, 19, 20:
		return AES[n-17]
	case 23:
		return "arcfour-hmac"
	}
	return ""
}

const clientConf = `[libdefaults]
  default_realm = ` + Name + `
  dns_lookup_kdc = false
  dns_lookup_realm = false
  dns_canonicalize_hostname = false
  rdns = false
  forwardable = true
  ticket_lifetime = 10h
%s
[realms]
  ` + Name + ` = {
    kdc = 127.0.0.1:%d
  }

[domain_realm]
  .` + Domain + ` = ` + Name + `
`

const kdcConf = `[libdefaults]
  allow_rc4 = true

[kdcdefaults]
  kdc_listen = 127.0.0.1:%[2]d
  kdc_tcp_listen = 127.0.0.1:%[2]d

[realms]
  ` + Name + ` = {
    database_name = %[1]s/principal
    key_stash_file = %[1]s/stash
    acl_file = %[1]s/kadm5.acl
    supported_enctypes = aes256-cts-hmac-sha384-192:normal aes128-cts-hmac-sha256-128:normal aes256-cts-hmac-sha1-96:normal aes128-cts-hmac-sha1-96:normal
    max_life = 24h
    max_renewable_life = 7d
  }

[logging]
  kdc = FILE:%[1]s/krb5kdc.log
  admin_server = FILE:%[1]s/kadmin.log
`

// startKDC makes the database and starts krb5kdc on a free port.
func (r *Realm) startKDC(ctx context.Context) error {
	var err error
	for range 5 {
		if r.port, err = FreePort(); err != nil {
			return err
		}
		if err = os.WriteFile(r.Conf, fmt.Appendf(nil, clientConf, "", r.port), 0o644); err != nil {
			return err
		}
		if err = os.WriteFile(filepath.Join(r.Dir, "kdc.conf"), fmt.Appendf(nil, kdcConf, r.kdcDir(), r.port), 0o644); err != nil {
			return err
		}
		if _, err = os.Stat(r.kdcDir()); err != nil {
			if err = os.Mkdir(r.kdcDir(), 0o700); err != nil {
				return err
			}
			if _, err = r.Run(Root, r.kdcEnv(), "/usr/sbin/kdb5_util", "create", "-s", "-r", Name, "-P", "master"); err != nil {
				return err
			}
		}
		if r.kdc, err = r.runKDC(r.port, nil); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return err
}

func (r *Realm) kdcDir() string { return filepath.Join(r.Dir, "kdc") }

func (r *Realm) kdcEnv() []string {
	return []string{"KRB5_KDC_PROFILE=" + filepath.Join(r.Dir, "kdc.conf")}
}

func (r *Realm) runKDC(port int, env []string) (*Process, error) {
	p, err := r.Start(r.Command(Root, append(r.kdcEnv(), env...), "/usr/sbin/krb5kdc", "-n"), r.Path("krb5kdc.out"))
	if err != nil {
		return nil, err
	}
	return p, p.wait(Patience, "answer", func() bool { return Listening(port) })
}

// Kadmin runs one query of kadmin.local. The keys of a keytab that it writes are looked for in what
// our daemon writes.
func (r *Realm) Kadmin(query ...string) error {
	out, err := r.Run(Root, r.kdcEnv(), "/usr/sbin/kadmin.local", append([]string{"-r", Name}, query...)...)
	if err == nil && strings.Contains(out, " while ") {
		err = fmt.Errorf("kadmin.local %s: %s", strings.Join(query, " "), out)
	}
	if i := slices.Index(query, "-k"); err == nil && query[0] == "ktadd" && i >= 0 {
		err = r.secrets.addKeytab(query[i+1])
	}
	return err
}

// AddPrincipal makes a principal with a password.
func (r *Realm) AddPrincipal(name, password string, enctypes ...string) error {
	return r.Kadmin(append([]string{"addprinc", "-pw", password, "+requires_preauth"}, append(encOption(enctypes), name)...)...)
}

// RandKey makes a service principal with random keys. Tickets for it have a session key of the same
// enctypes.
func (r *Realm) RandKey(name string, enctypes ...string) error {
	if err := r.Kadmin(append([]string{"addprinc", "-randkey"}, append(encOption(enctypes), name)...)...); err != nil {
		return err
	}
	if len(enctypes) == 0 {
		return nil
	}
	return r.Kadmin("setstr", name, "session_enctypes", strings.Join(enctypes, " "))
}

// Rotate gives a principal new random keys with the next kvno. The KDC keeps the old ones for
// tickets it has given out.
func (r *Realm) Rotate(name string, enctypes ...string) error {
	return r.Kadmin(append([]string{"cpw", "-randkey", "-keepold"}, append(encOption(enctypes), name)...)...)
}

func encOption(enctypes []string) []string {
	if len(enctypes) == 0 {
		return nil
	}
	salted := make([]string, len(enctypes))
	for i, e := range enctypes {
		salted[i] = e + ":normal"
	}
	return []string{"-e", strings.Join(salted, ",")}
}

// Keytab writes the keys of the principals, every kvno the KDC has, to a new keytab in the realm's
// directory: root's, mode 0600. It returns the path.
func (r *Realm) Keytab(base string, principals ...string) (string, error) {
	p := r.Path(base)
	return p, r.Ktadd(p, principals...)
}

// Ktadd adds the keys of the principals, every kvno the KDC has, to the keytab at path.
func (r *Realm) Ktadd(path string, principals ...string) error {
	if err := r.Kadmin(append([]string{"ktadd", "-norandkey", "-k", path}, principals...)...); err != nil {
		return err
	}
	return os.Chmod(path, 0o600)
}

// Kinit gets a ticket for a principal with a password into a new FILE ccache and returns the
// variables a client of it needs. options are kinit's.
func (r *Realm) Kinit(principal, password string, options ...string) (env []string, err error) {
	return r.KinitEnv(nil, principal, password, options...)
}

// KinitEnv is Kinit with variables of its own, which are among those returned.
func (r *Realm) KinitEnv(env []string, principal, password string, options ...string) ([]string, error) {
	env = append(env, "KRB5CCNAME=FILE:"+r.Path("cc-"+principal))
	_, err := r.runInput(Root, env, password+"\n", "/usr/bin/kinit", append(options, principal)...)
	if err == nil {
		err = os.Chmod(env[len(env)-1][len("KRB5CCNAME=FILE:"):], 0o666) // clients of several users keep their tickets in it
	}
	return env, err
}

// Krb5Conf writes another krb5.conf that differs from the realm's by the lines added to
// [libdefaults], and returns its path.
func (r *Realm) Krb5Conf(base string, lines ...string) (string, error) {
	p := r.Path(base)
	return p, os.WriteFile(p, fmt.Appendf(nil, clientConf, "  "+strings.Join(lines, "\n  ")+"\n", r.port), 0o644)
}

// Shifted is a client in another time: tickets of a KDC whose clock is offset away from ours,
// tokens made by a clock that is off as far. The returned variables put a program of Command into
// that time; ticketLife is kinit's -l. The KDC ends at once, so tickets for services are fetched
// now.
func (r *Realm) Shifted(offset time.Duration, principal, password, ticketLife string, services ...string) (env []string, err error) {
	conf, kdc, err := r.ShiftedKDC(offset)
	if err != nil {
		return nil, err
	}
	defer kdc.Stop()
	env, err = r.KinitEnv(append(r.ShiftEnv(offset), "KRB5_CONFIG="+conf), principal, password, "-l", ticketLife)
	if err != nil {
		return nil, err
	}
	for _, s := range services {
		if _, err := r.Run(Root, env, "/usr/bin/kvno", s); err != nil {
			return nil, err
		}
	}
	return env, nil
}

// ShiftedKDC starts another KDC of the realm, whose clock is offset away from ours, and returns its
// krb5.conf.
func (r *Realm) ShiftedKDC(offset time.Duration) (conf string, kdc *Process, err error) {
	port, err := FreePort()
	if err != nil {
		return "", nil, err
	}
	conf, profile := r.Path("shifted.conf"), r.Path("shifted-kdc.conf")
	err = errors.Join(
		os.WriteFile(conf, fmt.Appendf(nil, clientConf, "", port), 0o644),
		os.WriteFile(profile, fmt.Appendf(nil, kdcConf, r.kdcDir(), port), 0o644))
	if err != nil {
		return "", nil, err
	}
	kdc, err = r.runKDC(port, append(r.ShiftEnv(offset), "KRB5_KDC_PROFILE="+profile))
	return conf, kdc, err
}

// ShiftEnv moves the clock of a program.
func (r *Realm) ShiftEnv(offset time.Duration) []string {
	return []string{r.preloadShift(), fmt.Sprintf("LAB_SHIFT=%d", int(offset.Seconds()))}
}

// StillEnv stops the clock of a program within the second of a time.
func (r *Realm) StillEnv(at time.Time) []string {
	return []string{r.preloadShift(), fmt.Sprintf("LAB_STILL=%d", at.Unix())}
}

func (r *Realm) preloadShift() string { return "LD_PRELOAD=" + filepath.Join(r.Dir, "libshift.so") }
