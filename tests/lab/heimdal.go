package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// HeimdalDir is where tests/install-deps unpacks Heimdal's library: installed, it would push out
// MIT's headers.
const HeimdalDir = "/var/cache/gssproxyd-tests/heimdal/usr"

// HeimdalTool is Tool with Heimdal's library. It knows nothing of the plugin, which is MIT's; of
// the commands it has all but Impersonate.
func (r *Realm) HeimdalTool(u User, env ...string) (*Tool, error) {
	path, err := r.heimdalTool()
	if err != nil {
		return nil, err
	}
	return StartTool(r.Command(u, env, path))
}

// heimdalTool builds gsstool with Heimdal's library on first use.
func (r *Realm) heimdalTool() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := filepath.Join(r.Dir, "gsstool-heimdal")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	lib, err := heimdalLib()
	if err != nil {
		return "", err
	}
	cmd := exec.Command("cc", "-O2", "-Wall", "-DHEIMDAL", "-isystem", filepath.Join(HeimdalDir, "include", "heimdal"),
		"-o", out, filepath.Join(r.Dir, "gsstool.c"), filepath.Join(lib, "heimdal", "libgssapi.so"),
		"-Wl,--disable-new-dtags", "-Wl,-rpath,"+lib, "-Wl,-rpath-link,"+lib)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, text)
	}
	return out, nil
}

func heimdalLib() (string, error) {
	dirs, err := filepath.Glob(filepath.Join(HeimdalDir, "lib", "*-linux-*"))
	if err != nil || len(dirs) != 1 {
		return "", fmt.Errorf("no library in %s: run tests/install-deps", HeimdalDir)
	}
	return dirs[0], nil
}

// KCM starts Heimdal's kcm, a server of credential caches, and returns the path of its socket. The
// name it listens at is built into it: it has a /run of its own, for which mount(2) is needed.
func (r *Realm) KCM() (socket string, err error) {
	lib, err := heimdalLib()
	if err != nil {
		return "", err
	}
	program := filepath.Join(HeimdalDir, "sbin", "kcm")
	if _, err := os.Stat(program); err != nil {
		return "", fmt.Errorf("%w: run tests/install-deps", err)
	}
	cmd := r.Command(Root, []string{"LD_LIBRARY_PATH=" + lib}, "/bin/sh", "-c", "mount -t tmpfs none /run && exec "+program)
	cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	p, err := r.Start(cmd, r.Path("kcm.log"))
	if err != nil {
		return "", err
	}
	socket = fmt.Sprintf("/proc/%d/root/run/.heim_org.h5l.kcm-socket", p.PID())
	return socket, p.wait(Patience, "listen", func() bool {
		if running, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID())); running != program {
			return false // and /run is everybody's
		}
		_, err := os.Stat(socket)
		return err == nil
	})
}

// Heimdal is a realm of Heimdal's.
type Heimdal struct {
	Conf string // krb5.conf of clients, and of its servers

	r   *Realm
	env []string
}

// HeimdalName is the name of a realm of Heimdal's.
const HeimdalName = "HEIMDAL.TEST"

const heimdalConf = `[libdefaults]
  default_realm = ` + HeimdalName + `
  dns_lookup_kdc = false
  dns_lookup_realm = false
  rdns = false
[realms]
  ` + HeimdalName + ` = {
    kdc = 127.0.0.1:%[1]d
    kpasswd_server = 127.0.0.1:%[2]d
  }
[kdc]
  ports = %[1]d
  addresses = 127.0.0.1
  num-kdc-processes = 1
  database = {
    dbname = %[3]s/db
    mkey_file = %[3]s/m-key
    acl_file = %[3]s/acl
    log_file = %[3]s/log
  }
[logging]
  default = STDERR
`

// Heimdal raises a realm of Heimdal's, with a KDC and kpasswdd, which listens at UDP alone.
func (r *Realm) Heimdal() (*Heimdal, error) {
	lib, err := heimdalLib()
	if err != nil {
		return nil, err
	}
	servers := filepath.Join(HeimdalDir, "lib", "heimdal-servers")
	if _, err := os.Stat(servers); err != nil {
		return nil, fmt.Errorf("%w: run tests/install-deps", err)
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	passwd, err := FreePort()
	if err != nil {
		return nil, err
	}
	dir := r.Path("heimdal")
	h := &Heimdal{Conf: dir + "/krb5.conf", r: r}
	h.env = []string{"LD_LIBRARY_PATH=" + lib, "KRB5_CONFIG=" + h.Conf}
	err = errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(h.Conf, fmt.Appendf(nil, heimdalConf, port, passwd, dir), 0o644), os.WriteFile(dir+"/acl", nil, 0o600))
	if err == nil {
		err = h.Kadmin("init", "--realm-max-ticket-life=1day", "--realm-max-renewable-life=1week", HeimdalName)
	}
	if err != nil {
		return nil, err
	}
	kdc, err := r.Start(r.Command(Root, h.env, servers+"/kdc", "--config-file="+h.Conf), dir+"/kdc.log")
	if err != nil {
		return nil, err
	}
	if err := kdc.wait(Patience, "listen", func() bool { return Listening(port) }); err != nil {
		return nil, err
	}
	// The kind of keytab that it has by default, HDBGET, does not find the key there.
	kpasswdd, err := r.Start(r.Command(Root, h.env, servers+"/kpasswdd", fmt.Sprintf("--port=%d", passwd), "--addresses=127.0.0.1", "--keytab=HDB:"+dir+"/db"), dir+"/kpasswdd.log")
	if err != nil {
		return nil, err
	}
	return h, kpasswdd.wait(Patience, "listen", func() bool {
		u, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", passwd))
		if err == nil {
			u.Close()
		}
		return err != nil
	})
}

// Kadmin runs a command of kadmin -l.
func (h *Heimdal) Kadmin(args ...string) error {
	_, err := h.r.Run(Root, h.env, filepath.Join(HeimdalDir, "bin", "kadmin.heimdal"), append([]string{"-l"}, args...)...)
	return err
}

// Keytab writes the keys of a principal to a new file.
func (h *Heimdal) Keytab(principal string) (path string, err error) {
	path = h.r.Path("heimdal.keytab")
	return path, h.Kadmin("ext_keytab", "-k", "FILE:"+path, principal)
}
