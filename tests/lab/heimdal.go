package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// HeimdalDir is where tests/install-deps unpacks Heimdal's library: installed, it would push out MIT's headers.
const HeimdalDir = "/var/cache/gssproxyd-tests/heimdal/usr"

// HeimdalTool is Tool with Heimdal's library. It knows nothing of the plugin, which is MIT's; of the commands it has
// all but Impersonate.
func (r *Realm) HeimdalTool(u User, env ...string) (*Tool, error) {
	path, err := r.heimdalTool()
	if err != nil {
		return nil, err
	}
	return startTool(r.Command(u, env, path))
}

// heimdalTool builds gsstool with Heimdal's library on first use.
func (r *Realm) heimdalTool() (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := filepath.Join(r.Dir, "gsstool-heimdal")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	dirs, err := filepath.Glob(filepath.Join(HeimdalDir, "lib", "*-linux-*"))
	if err != nil || len(dirs) != 1 {
		return "", fmt.Errorf("no library in %s: run tests/install-deps", HeimdalDir)
	}
	cmd := exec.Command("cc", "-O2", "-Wall", "-DHEIMDAL", "-isystem", filepath.Join(HeimdalDir, "include", "heimdal"),
		"-o", out, filepath.Join(r.Dir, "gsstool.c"), filepath.Join(dirs[0], "heimdal", "libgssapi.so"),
		"-Wl,--disable-new-dtags", "-Wl,-rpath,"+dirs[0], "-Wl,-rpath-link,"+dirs[0])
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd.Args, err, text)
	}
	return out, nil
}
