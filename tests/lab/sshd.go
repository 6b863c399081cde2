package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const sshdConf = `Port %[2]d
ListenAddress 127.0.0.1
HostKey %[1]s/hostkey
PidFile %[1]s/pid
UsePAM no
StrictModes no
PermitRootLogin yes
PubkeyAuthentication no
PasswordAuthentication no
KbdInteractiveAuthentication no
GSSAPIAuthentication yes
GSSAPICleanupCredentials yes
GSSAPIStrictAcceptorCheck no
GSSAPIKeyExchange yes
`

// SSHD is a running OpenSSH server that lets alice in as root, by Kerberos and nothing else.
type SSHD struct {
	*Process
	Port  int
	realm *Realm
	conf  string // krb5.conf, where alice is root
}

// SSHD starts sshd as root with the variables of env.
func (r *Realm) SSHD(env ...string) (*SSHD, error) {
	dir, err := r.MkdirFor(Root, "sshd")
	if err != nil {
		return nil, err
	}
	s := &SSHD{realm: r, conf: filepath.Join(dir, "krb5.conf")}
	if _, err := r.Run(Root, nil, "/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "hostkey")); err != nil {
		return nil, err
	}
	logins := filepath.Join(dir, "k5login")
	text := fmt.Appendf(nil, clientConf, "  k5login_directory = "+logins, r.port)
	err = errors.Join(os.Mkdir(logins, 0o755),
		os.WriteFile(filepath.Join(logins, "root"), []byte("alice@"+Name+"\n"), 0o644),
		os.WriteFile(s.conf, text, 0o644),
		os.MkdirAll("/run/sshd", 0o755)) // a name built into sshd: its children change root to it
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "sshd_config")
	for range 5 {
		if s.Port, err = FreePort(); err != nil {
			return nil, err
		}
		if err = os.WriteFile(conf, fmt.Appendf(nil, sshdConf, dir, s.Port), 0o600); err != nil {
			return nil, err
		}
		cmd := r.Command(Root, append([]string{"KRB5_CONFIG=" + s.conf}, env...), "/usr/sbin/sshd", "-D", "-e", "-f", conf)
		if s.Process, err = r.Start(cmd, filepath.Join(dir, "log")); err != nil {
			return nil, err
		}
		if err = s.wait(Patience, "listen", func() bool { return Listening(s.Port) }); err == nil {
			return s, nil
		}
	}
	return nil, err
}

// SSH runs a command on s as user u, who proves to be alice by Kerberos or not at all. options are
// the client's, and win.
func (r *Realm) SSH(u User, env []string, s *SSHD, command string, options ...string) (string, error) {
	args := append(options, "-F", "none", "-p", fmt.Sprint(s.Port), "-l", "root",
		"-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
		"-o", "PreferredAuthentications=gssapi-with-mic", "-o", "GSSAPIAuthentication=yes",
		"-o", "GSSAPIServerIdentity="+Host, "127.0.0.1", command)
	return r.Run(u, env, "/usr/bin/ssh", args...)
}
