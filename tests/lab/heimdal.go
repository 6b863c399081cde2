package lab

import (
	"fmt"
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
