package nfsvm

import (
	"bufio"
	"bytes"
	"debug/elf"
	_ "embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// programs of the guest. The libraries they need are found by their ELF headers; plugins are opened
// by name and are named here.
var programs = []string{
	"bin/busybox", "bin/kmod", "usr/bin/getent", "usr/bin/kinit", "usr/bin/klist", "usr/bin/kvno",
	"usr/sbin/krb5kdc", "usr/lib/x86_64-linux-gnu/krb5/plugins/kdb/db2.so", "usr/lib/x86_64-linux-gnu/libverto-libev.so.1",
	"usr/sbin/gssproxy", "usr/lib/x86_64-linux-gnu/gssproxy/proxymech.so",
	"usr/sbin/rpc.gssd", "usr/sbin/rpc.nfsd", "usr/sbin/rpc.mountd", "usr/sbin/rpc.idmapd",
	"usr/sbin/exportfs", "usr/sbin/mount.nfs",
	"usr/lib/x86_64-linux-gnu/libnfsidmap/nsswitch.so", "usr/lib/x86_64-linux-gnu/libnfsidmap/static.so",
	"usr/lib/libnss_extrausers.so.2", "usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
}

// modules are the parts of the kernel's module tree the guest has; what they depend on is added.
var modules = []string{
	"kernel/fs/nfsd/nfsd.ko", "kernel/fs/nfs/nfsv4.ko", "kernel/net/sunrpc/auth_gss/rpcsec_gss_krb5.ko",
	"kernel/crypto/cts.ko", "kernel/crypto/ecb.ko", "kernel/arch/x86/crypto/aesni-intel.ko",
	"kernel/arch/x86/crypto/sha1-ssse3.ko", "kernel/arch/x86/crypto/sha256-ssse3.ko",
}

// links of the guest's file system: name, target.
var links = [][2]string{
	{"bin", "usr/bin"}, {"sbin", "usr/sbin"}, {"lib", "usr/lib"}, {"lib64", "usr/lib64"}, {"var/run", "/run"},
	{"usr/bin/sh", "busybox"}, {"usr/sbin/modprobe", "../bin/kmod"}, {"usr/sbin/rmmod", "../bin/kmod"},
	{"usr/sbin/mount.nfs4", "mount.nfs"},
	{"var/lib/nfs/rpc_pipefs", "/run/rpc_pipefs"},
}

//go:embed init
var initScript []byte

// Packages is the tree install-deps unpacks.
type Packages struct {
	root   string
	kernel string // version
}

// FindPackages finds the tree, or says how to get it.
func FindPackages() (*Packages, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(cache, "gssproxyd/nfsvm/current"))
	if err != nil {
		return nil, fmt.Errorf("%w: run tests/nfsvm/install-deps", err)
	}
	version, err := os.ReadFile(filepath.Join(dir, "kernel"))
	if err != nil {
		return nil, err
	}
	return &Packages{root: filepath.Join(dir, "root"), kernel: strings.TrimSpace(string(version))}, nil
}

// Kernel is the path of the kernel's image.
func (p *Packages) Kernel() string { return filepath.Join(p.root, "boot/vmlinuz-"+p.kernel) }

// Initramfs writes the guest's file system: what of the packages it needs, and what more adds.
func (p *Packages) Initramfs(w io.Writer, more func(Adder) error) error {
	a := newArchive(w)
	for _, l := range links {
		a.link(l[0], l[1])
	}
	for _, dir := range []string{"proc", "sys", "dev", "run", "mnt", "export", "log", "root", "var/lib/gssproxy/clients", "var/lib/gssproxy/rcache", "var/lib/nfs/v4recovery", "usr/lib64", "usr/local/bin"} {
		a.dir(dir, 0o755)
	}
	a.dir("tmp", 0o1777)
	a.dir("var/tmp", 0o1777) // replay caches
	a.file("init", 0o755, 0, initScript)
	for _, name := range []string{"etc/netconfig", "etc/gss/mech.d/proxymech.conf"} {
		if err := p.add(a, name); err != nil {
			return err
		}
	}
	if err := p.addPrograms(a); err != nil {
		return err
	}
	if err := p.addModules(a); err != nil {
		return err
	}
	if err := more(Adder{a}); err != nil {
		return err
	}
	return a.close()
}

// add adds a file under its own name.
func (p *Packages) add(a *archive, name string) error {
	b, err := os.ReadFile(filepath.Join(p.root, name))
	if err != nil {
		return err
	}
	st, err := os.Stat(filepath.Join(p.root, name))
	if err != nil {
		return err
	}
	a.file(usr(name), st.Mode().Perm(), 0, b)
	return nil
}

// usr is where a name of /bin, /sbin and /lib really is.
func usr(name string) string {
	for _, dir := range []string{"bin/", "sbin/", "lib/", "lib64/"} {
		if strings.HasPrefix(name, dir) {
			return "usr/" + name
		}
	}
	return name
}

// addPrograms adds the programs and every library one of them needs.
func (p *Packages) addPrograms(a *archive) error {
	seen := make(map[string]bool)
	queue := append([]string{"lib64/ld-linux-x86-64.so.2"}, programs...)
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		if err := p.add(a, name); err != nil {
			return err
		}
		f, err := elf.Open(filepath.Join(p.root, name))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		libs, err := f.ImportedLibraries()
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, lib := range libs {
			if lib == "ld-linux-x86-64.so.2" {
				continue
			}
			queue = append(queue, "usr/lib/x86_64-linux-gnu/"+lib)
		}
	}
	return nil
}

// addModules adds the modules, what they depend on, and the indices modprobe looks into.
func (p *Packages) addModules(a *archive) error {
	base := "usr/lib/modules/" + p.kernel
	deps := make(map[string][]string)
	b, err := os.ReadFile(filepath.Join(p.root, base, "modules.dep"))
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		name, rest, _ := strings.Cut(s.Text(), ":")
		deps[name] = strings.Fields(rest)
	}
	seen := make(map[string]bool)
	for _, m := range modules {
		for _, name := range append([]string{m}, deps[m]...) {
			if seen[name] {
				continue
			}
			seen[name] = true
			if err := p.add(a, base+"/"+name); err != nil {
				return err
			}
		}
	}
	indices, err := filepath.Glob(filepath.Join(p.root, base, "modules.*"))
	if err != nil {
		return err
	}
	for _, path := range indices {
		if err := p.add(a, base+"/"+filepath.Base(path)); err != nil {
			return err
		}
	}
	return nil
}

// archive writes a cpio archive of the "newc" kind (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst). Everything belongs to root's group;
// directories above a name are made.
type archive struct {
	w    *bufio.Writer
	ino  int
	have map[string]bool
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), have: make(map[string]bool)}
}

func (a *archive) entry(name string, mode uint32, uid uint32, content []byte) {
	if a.have[name] {
		return
	}
	a.have[name] = true
	if dir := filepath.Dir(name); dir != "." {
		a.dir(dir, 0o755)
	}
	a.ino++
	head := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.ino, mode, uid, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	a.write([]byte(head))
	a.write(content)
}

// write writes b and pads with zeros to a multiple of four.
func (a *archive) write(b []byte) {
	a.w.Write(b) // errors stay with the writer until close
	a.w.Write(make([]byte, -len(b)&3))
}

func (a *archive) dir(name string, mode uint32) { a.entry(name, 0o040000|mode, 0, nil) }

func (a *archive) link(name, target string) { a.entry(name, 0o120777, 0, []byte(target)) }

func (a *archive) file(name string, mode fs.FileMode, uid uint32, content []byte) {
	a.entry(name, 0o100000|uint32(mode), uid, content)
}

// tree adds the files and directories below dir under the name base.
func (a *archive) tree(dir, base string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := filepath.Join(base, rel)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			a.dir(name, uint32(info.Mode().Perm()))
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			a.file(name, info.Mode().Perm(), 0, b)
		}
		return nil
	})
}

// Adder puts files into the guest; names have no leading slash.
type Adder struct{ a *archive }

// File adds one file that belongs to the user uid.
func (d Adder) File(name string, mode os.FileMode, uid uint32, content []byte) {
	d.a.file(name, mode, uid, content)
}

// Copy adds the host's file at path.
func (d Adder) Copy(path, name string, mode os.FileMode, uid uint32) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	d.a.file(name, mode, uid, b)
	return nil
}

// Tree adds the host's directory with all below it; everything belongs to root.
func (d Adder) Tree(dir, name string) error { return d.a.tree(dir, name) }

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 0, nil)
	return a.w.Flush()
}
