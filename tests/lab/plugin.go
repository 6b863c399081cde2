package lab

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// Plugin is a plugin of MIT's mechglue that puts a daemon behind a program's GSS-API: ours, or the C
// project's as Debian has it.
type Plugin string

// The plugins.
const (
	Ours    Plugin = "ours"
	Debians Plugin = "debian"
)

// debiansMech is the line of the mechglue's configuration that installs Debian's plugin.
const debiansMech = "/etc/gss/mech.d/proxymech.conf"

// buildPlugin puts our plugin into the realm's directory, and looks which one PluginEnv is to have.
func (r *Realm) buildPlugin() error {
	r.Plugin = Plugin(cmp.Or(os.Getenv("LAB_PLUGIN"), string(Ours)))
	if r.Plugin != Ours && r.Plugin != Debians {
		return fmt.Errorf("LAB_PLUGIN: no plugin %q", r.Plugin)
	}
	b, err := ourPlugin()
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.PluginPath(Ours), b, 0o755); err != nil {
		return err
	}
	return os.WriteFile(r.mechConfig(Ours), []byte(r.MechLine(Ours)), 0o644)
}

// ourPlugin is what BuildPlugin builds, once for all realms of a test program.
var ourPlugin = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "gssmech-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "plugin.so")
	if err := BuildPlugin(out); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
})

// BuildPlugin builds our plugin. vars are more of make's variables.
func BuildPlugin(out string, vars ...string) error {
	root, err := moduleRoot()
	if err != nil {
		return err
	}
	// The go command keeps a test's result until a file changes that the test itself has looked at.
	sources, err := filepath.Glob(filepath.Join(root, "interposer/mechglue/*"))
	if err != nil {
		return err
	}
	for _, s := range append(sources, filepath.Join(root, "Makefile")) {
		if _, err := os.Stat(s); err != nil {
			return err
		}
	}
	cmd := exec.Command("make", append([]string{"-s", "plugin", "MECH_OUT=" + out}, vars...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "MAKEFLAGS=") // not those of the make that runs the tests
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make plugin: %w\n%s", err, text)
	}
	return nil
}

// PluginPath is where a plugin is.
func (r *Realm) PluginPath(p Plugin) string {
	if p == Ours {
		return filepath.Join(r.Dir, "gssproxyd_mech.so")
	}
	return "/usr/lib/x86_64-linux-gnu/gssproxy/proxymech.so"
}

// MechLine is the line of the mechglue's configuration that installs a plugin.
func (r *Realm) MechLine(p Plugin) string {
	return "gssproxy_v1 2.16.840.1.113730.3.8.15.1 " + r.PluginPath(p) + " <interposer>\n"
}

func (r *Realm) mechConfig(p Plugin) string {
	if p == Ours {
		return filepath.Join(r.Dir, "mech.conf")
	}
	return debiansMech
}

// Load has a program load the plugin, and no other mechanism that is installed on the host. A
// program that has more rights than who starts it does not look at the variable.
func (r *Realm) Load(p Plugin) []string { return []string{"GSS_MECH_CONFIG=" + r.mechConfig(p)} }

// PluginEnvOf makes an unmodified GSS-API program use the daemon at socket, and only it, by the
// plugin.
func (r *Realm) PluginEnvOf(p Plugin, socket string) []string {
	return append(r.Load(p), "GSS_USE_PROXY=yes", "GSSPROXY_BEHAVIOR=REMOTE_ONLY", "GSSPROXY_SOCKET="+socket)
}

// PluginEnv is PluginEnvOf with the realm's plugin.
func (r *Realm) PluginEnv(socket string) []string { return r.PluginEnvOf(r.Plugin, socket) }
