package lab

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// Slapd is a running OpenLDAP server with a directory of its own: the suffix dc=example,dc=test,
// where everybody who is authenticated reads and root, over the ldapi socket, writes. GSSAPI users
// are uid=NAME,cn=gssapi,cn=auth.
type Slapd struct {
	*Process
	Port  int    // of 127.0.0.1; the service is ldap@localhost
	LDAPI string // the socket's URI
	User  User   // it runs as
	realm *Realm
}

const slapdConf = `include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include %[1]s/kerberos.schema
pidfile %[1]s/pid
modulepath /usr/lib/ldap
moduleload back_mdb
sasl-host localhost
access to * by users read by anonymous auth

database mdb
suffix dc=example,dc=test
directory %[1]s/db
maxsize 67108864
envflags nosync
rootdn gidNumber=0+uidNumber=0,cn=peercred,cn=external,cn=auth
index objectClass eq
index krbPrincipalName eq,pres,sub
`

const slapdBase = `dn: dc=example,dc=test
objectClass: dcObject
objectClass: organization
dc: example
o: lab

dn: cn=greeting,dc=example,dc=test
objectClass: organizationalRole
cn: greeting
description: hello from the directory
`

// Slapd starts slapd as the user openldap with the variables of env.
func (r *Realm) Slapd(env ...string) (*Slapd, error) {
	u, err := LookupUser("openldap")
	if err != nil {
		return nil, err
	}
	dir, err := r.MkdirFor(u, "slapd")
	if err != nil {
		return nil, err
	}
	schema, err := readGzip("/usr/share/doc/krb5-kdc-ldap/kerberos.schema.gz")
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "slapd.conf")
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "kerberos.schema"), schema, 0o644),
		os.WriteFile(conf, fmt.Appendf(nil, slapdConf, dir), 0o644))
	if err == nil {
		db := filepath.Join(dir, "db")
		err = errors.Join(os.Mkdir(db, 0o700), os.Chown(db, int(u.UID), int(u.GID)))
	}
	if err == nil {
		_, err = r.runInput(u, nil, slapdBase, "/usr/sbin/slapadd", "-q", "-f", conf)
	}
	if err != nil {
		return nil, err
	}
	s := &Slapd{LDAPI: "ldapi://" + url.QueryEscape(filepath.Join(dir, "ldapi")), User: u, realm: r}
	for range 5 {
		if s.Port, err = FreePort(); err != nil {
			return nil, err
		}
		urls := fmt.Sprintf("ldap://127.0.0.1:%d %s", s.Port, s.LDAPI)
		if s.Process, err = r.Start(r.Command(u, env, "/usr/sbin/slapd", "-d", "0", "-f", conf, "-h", urls), filepath.Join(dir, "log")); err != nil {
			return nil, err
		}
		if err = s.wait(Patience, "listen", func() bool { return Listening(s.Port) }); err == nil {
			return s, nil
		}
	}
	return nil, err
}

// Modify changes the directory as LDIF says.
func (s *Slapd) Modify(ldif string) error {
	_, err := s.realm.runInput(Root, nil, ldif, "/usr/bin/ldapmodify", "-Q", "-Y", "EXTERNAL", "-H", s.LDAPI)
	return err
}

// LookupUser is the user of the name.
func LookupUser(name string) (User, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return User{}, fmt.Errorf("%w: run tests/install-deps", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return User{uint32(uid), uint32(gid)}, errors.Join(err1, err2)
}

func readGzip(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: run tests/install-deps", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

const ldapKDCConf = `[libdefaults]
  allow_rc4 = true

[kdcdefaults]
  kdc_listen = 127.0.0.1:%[2]d
  kdc_tcp_listen = 127.0.0.1:%[2]d

[realms]
  ` + Name + ` = {
    database_module = ldap
    key_stash_file = %[1]s/stash
    acl_file = %[1]s/kadm5.acl
    supported_enctypes = aes256-cts-hmac-sha384-192:normal aes256-cts-hmac-sha1-96:normal
    max_life = 24h
    max_renewable_life = 7d
  }

[dbmodules]
  ldap = {
    db_library = kldap
    ldap_kerberos_container_dn = cn=kerberos,dc=example,dc=test
    ldap_kdc_sasl_mech = EXTERNAL
    ldap_kadmind_sasl_mech = EXTERNAL
    ldap_servers = %[3]s
    ldap_conns_per_server = 2
  }

[logging]
  kdc = FILE:%[1]s/krb5kdc.log
  admin_server = FILE:%[1]s/kadmin.log
`

// LDAPRealm is a realm whose database is a directory, where each principal may have a list of the
// services it may delegate to: the KDC enforces it. (MIT's KDC with its usual database enforces
// that nobody may. Lists the other way round, of who may delegate to a service, it has with
// neither.)
type LDAPRealm struct {
	*Realm
	Directory *Slapd
}

// UpLDAP raises such a realm, with the user principal alice.
func UpLDAP() (l *LDAPRealm, err error) {
	if err := Missing(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "gsslab-")
	if err != nil {
		return nil, err
	}
	r := &Realm{Dir: dir, Conf: filepath.Join(dir, "krb5.conf")}
	l = &LDAPRealm{Realm: r}
	defer func() {
		if err != nil {
			r.Close()
			l = nil
		}
	}()
	if err = errors.Join(os.Chmod(dir, 0o755), os.Mkdir(r.kdcDir(), 0o700)); err != nil {
		return l, err
	}
	if err = r.buildTools(context.Background()); err != nil {
		return l, err
	}
	// slapd starts before there is a realm for its tickets: it authenticates nobody but root at its
	// socket.
	if l.Directory, err = r.Slapd("SASL_CONF_PATH=/nonexistent"); err != nil {
		return l, err
	}
	for i := range 5 {
		if r.port, err = FreePort(); err != nil {
			return l, err
		}
		err = errors.Join(
			os.WriteFile(r.Conf, fmt.Appendf(nil, clientConf, "", r.port), 0o644),
			os.WriteFile(filepath.Join(dir, "kdc.conf"), fmt.Appendf(nil, ldapKDCConf, r.kdcDir(), r.port, l.Directory.LDAPI), 0o644))
		if err == nil && i == 0 {
			err = l.Directory.Modify("dn: cn=kerberos,dc=example,dc=test\nchangetype: add\nobjectClass: krbContainer\ncn: kerberos\n")
			if err == nil {
				_, err = r.Run(Root, r.kdcEnv(), "/usr/sbin/kdb5_ldap_util", "-H", l.Directory.LDAPI, "-r", Name, "create", "-s", "-P", "master", "-subtrees", "dc=example,dc=test")
			}
		}
		if err != nil {
			return l, err
		}
		if r.kdc, err = r.runKDC(r.port, nil); err == nil {
			return l, r.AddPrincipal("alice", "alice")
		}
	}
	return l, err
}

// AllowDelegation lets a service act for others towards the targets (krbAllowedToDelegateTo); with
// none, no more. All are principals without realm.
func (l *LDAPRealm) AllowDelegation(service string, targets ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "dn: krbPrincipalName=%s@%s,cn=%s,cn=kerberos,dc=example,dc=test\nchangetype: modify\nreplace: krbAllowedToDelegateTo\n", service, Name, Name)
	for _, t := range targets {
		fmt.Fprintf(&b, "krbAllowedToDelegateTo: %s@%s\n", t, Name)
	}
	return l.Directory.Modify(b.String())
}

// Alias gives a principal another name, by which clients that ask the KDC to canonicalize get
// tickets of the principal. Both are without realm.
func (l *LDAPRealm) Alias(principal, other string) error {
	return l.Directory.Modify(fmt.Sprintf("dn: krbPrincipalName=%[1]s@%[3]s,cn=%[3]s,cn=kerberos,dc=example,dc=test\nchangetype: modify\n"+
		"add: krbPrincipalName\nkrbPrincipalName: %[2]s@%[3]s\n-\nadd: krbCanonicalName\nkrbCanonicalName: %[1]s@%[3]s\n", principal, other, Name))
}

// Attribute changes a principal with options of kadmin's modprinc: +ok_to_auth_as_delegate,
// -maxlife 6s.
func (r *Realm) Attribute(principal string, options ...string) error {
	return r.Kadmin(append(append([]string{"modprinc"}, options...), principal)...)
}

// KDCLog is what the KDC has logged.
func (r *Realm) KDCLog() string {
	b, _ := os.ReadFile(filepath.Join(r.kdcDir(), "krb5kdc.log"))
	return string(b)
}
