package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"go.yaml.in/yaml/v3"
)

// manifest is what of an object of Kubernetes this test looks at.
type manifest struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Spec     struct {
		podSpec              `yaml:",inline"`
		PodInfoOnMount       bool     `yaml:"podInfoOnMount"`
		AttachRequired       *bool    `yaml:"attachRequired"`
		VolumeLifecycleModes []string `yaml:"volumeLifecycleModes"`
		Template             struct{ Spec podSpec }
	}
}

type podSpec struct {
	Containers []struct {
		Name         string
		Args         []string
		VolumeMounts []struct {
			Name             string
			MountPath        string `yaml:"mountPath"`
			MountPropagation string `yaml:"mountPropagation"`
			ReadOnly         bool   `yaml:"readOnly"`
		} `yaml:"volumeMounts"`
	}
	Volumes []volume
}

type volume struct {
	Name     string
	HostPath struct{ Path string } `yaml:"hostPath"`
	CSI      struct{ Driver string }
}

// TestManifests: what is shipped for Kubernetes fits the driver.
func TestManifests(t *testing.T) {
	objects := map[string]manifest{}
	files, err := filepath.Glob("../dist/kubernetes/*.yaml")
	check(t, err)
	for _, name := range files {
		b, err := os.ReadFile(name)
		check(t, err)
		for dec := yaml.NewDecoder(bytes.NewReader(b)); ; {
			var m manifest
			if err := dec.Decode(&m); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			objects[m.Kind] = m
		}
	}
	d := objects["CSIDriver"]
	if d.Metadata.Name != driverName || !d.Spec.PodInfoOnMount || d.Spec.AttachRequired == nil || *d.Spec.AttachRequired || !slices.Equal(d.Spec.VolumeLifecycleModes, []string{"Ephemeral"}) {
		t.Errorf("%+v", d)
	}
	if p := objects["Pod"].Spec; len(p.Volumes) != 1 || p.Volumes[0].CSI.Driver != driverName || !p.Containers[0].VolumeMounts[0].ReadOnly {
		t.Errorf("%+v", p)
	}
	set := objects["DaemonSet"].Spec.Template.Spec
	t.Setenv("NODE_NAME", "node")
	o, err := parse(set.Containers[0].Args)
	check(t, err)
	// What is a path for the driver is the same one on the host.
	shown := map[string]string{} // propagation, by path
	for _, m := range set.Containers[0].VolumeMounts {
		i := slices.IndexFunc(set.Volumes, func(v volume) bool { return v.Name == m.Name })
		if i < 0 || set.Volumes[i].HostPath.Path != m.MountPath {
			t.Errorf("%s is not the host's", m.MountPath)
		}
		shown[m.MountPath] = m.MountPropagation
	}
	for path, propagation := range map[string]string{filepath.Dir(o.endpoint): "", o.kubelet + "/pods": "Bidirectional", filepath.Dir(filepath.Dir(o.registration)): ""} {
		if got, ok := shown[path]; !ok || got != propagation {
			t.Errorf("%s is shown: %t %q", path, ok, got)
		}
	}
	defaults, err := parse(nil)
	check(t, err)
	if o != defaults {
		t.Errorf("%+v; without options it is %+v", o, defaults)
	}
}
