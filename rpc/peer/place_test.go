package peer

import (
	"strings"
	"testing"
)

func TestPlaceOf(t *testing.T) {
	const uid, underscores, static = "8e3cbf3e-5c4a-4d1c-9a3e-0f6e2d0e9b11", "8e3cbf3e_5c4a_4d1c_9a3e_0f6e2d0e9b11", "0123456789abcdef0123456789abcdef"
	id := strings.Repeat("0a", 32)
	const burstable = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod"
	for path, want := range map[string]Place{
		"/":                                  {},
		"":                                   {},
		"/init.scope":                        {Unit: "init.scope"},
		"/system.slice/httpd.service":        {Unit: "httpd.service"},
		"/system.slice/httpd.service/worker": {Unit: "httpd.service"},
		"/system.slice/system-getty.slice/getty@tty1.service":                                {Unit: "getty@tty1.service"},
		"/system.slice/_cgroup.service":                                                      {Unit: "cgroup.service"},
		"/user.slice/user-1000.slice/session-2.scope":                                        {Unit: "session-2.scope"},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/httpd.service":              {Unit: "user@1000.service"},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope":   {Unit: "user@1000.service"},
		"/user.slice/user-1000.slice/user@1000.service" + burstable + underscores + ".slice": {Unit: "user@1000.service"},
		"/system.slice": {},

		// Pods, by either driver, and a node in a container.
		burstable + underscores + ".slice/cri-containerd-" + id + ".scope":                                                    {"cri-containerd-" + id + ".scope", uid, id},
		burstable + underscores + ".slice/crio-" + id + ".scope/child":                                                        {"crio-" + id + ".scope", uid, id},
		burstable + underscores + ".slice/crio-conmon-" + id + ".scope":                                                       {"crio-conmon-" + id + ".scope", uid, ""},
		burstable + underscores + ".slice":                                                                                    {Pod: uid},
		"/kubepods.slice/kubepods-pod" + underscores + ".slice/docker-" + id + ".scope":                                       {"docker-" + id + ".scope", uid, id},
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + static + ".slice/x":                             {Pod: static},
		"/kubepods/burstable/pod" + uid + "/" + id:                                                                            {Pod: uid, Container: id},
		"/kubepods/pod" + uid + "/" + id:                                                                                      {Pod: uid, Container: id},
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + underscores + ".slice/cri-containerd-" + id + ".scope": {"cri-containerd-" + id + ".scope", uid, id},

		// Containers.
		"/system.slice/docker-" + id + ".scope":                  {Unit: "docker-" + id + ".scope", Container: id},
		"/docker/" + id:                                          {Container: id},
		"/docker/" + id + "/kubepods/pod" + uid + "/" + id:       {Container: id},
		"/machine.slice/libpod-" + id + ".scope/container":       {Unit: "libpod-" + id + ".scope", Container: id},
		"/machine.slice/libpod-conmon-" + id + ".scope":          {Unit: "libpod-conmon-" + id + ".scope"},
		"/libpod_parent/libpod-" + id:                            {Container: id},
		"/system.slice/docker-" + id[1:] + ".scope":              {Unit: "docker-" + id[1:] + ".scope"},
		"/system.slice/docker-" + strings.ToUpper(id) + ".scope": {Unit: "docker-" + strings.ToUpper(id) + ".scope"},

		// What somebody in there has made.
		"/system.slice/docker-" + id + ".scope" + burstable + underscores + ".slice/cri-containerd-" + id + ".scope": {Unit: "docker-" + id + ".scope", Container: id},
		"/system.slice/evil.service/kubepods/pod" + uid + "/" + id:                                                   {Unit: "evil.service"},
		"/evil/system.slice/httpd.service":                                                                           {},
		"/evil.slice/kubepods-pod" + underscores + ".slice/" + id:                                                    {},
		"/kubepods/evil/pod" + uid + "/" + id:                                                                        {},
		"/kubepods/burstable/burstable/pod" + uid + "/" + id:                                                         {},
		"/kubepods/pod" + uid + "0/" + id:                                                                            {},
		"/kubepods/pod../" + id:                                                                                      {},
		"/kubepods.slice/kubepods-podnone.slice/docker-" + id + ".scope":                                             {Unit: "docker-" + id + ".scope", Container: id},
		"/../system.slice/httpd.service":                                                                             {},
		"system.slice/httpd.service":                                                                                 {},
	} {
		if got := PlaceOf(path); got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", path, got, want)
		}
	}
}

// Whatever the path, what is outermost decides.
func FuzzPlaceOf(f *testing.F) {
	f.Add("/system.slice/httpd.service", "kubepods/pod8e3cbf3e-5c4a-4d1c-9a3e-0f6e2d0e9b11")
	f.Add("/docker/"+strings.Repeat("0", 64), "system.slice/a.service")
	f.Add("/kubepods.slice/kubepods-pod8e3cbf3e_5c4a_4d1c_9a3e_0f6e2d0e9b11.slice/crio-"+strings.Repeat("0", 64)+".scope", "x")
	f.Fuzz(func(t *testing.T, path, below string) {
		p := PlaceOf(path)
		if p.Container == "" && (p.Unit == "" || p.Pod != "") {
			return // a place where a runtime may put a container
		}
		if deeper := PlaceOf(path + "/" + below); deeper != p && !strings.HasSuffix(path, "/") {
			t.Errorf("%q: %+v, and below it %q: %+v", path, p, below, deeper)
		}
	})
}
