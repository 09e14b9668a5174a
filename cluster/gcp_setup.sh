#!/usr/bin/env bash
# What cluster/gcp.yaml names, in your project: the bucket for runs, an image repository, a network and the accounts of
# head and workers. Prints the launcher file with your project filled in. Can be run again.
#
#   cluster/gcp_setup.sh PROJECT BUCKET [CIDR] >gcp.mine.yaml   CIDR: who may use SSH; default: this machine's address
set -euo pipefail

project=${1:?usage: cluster/gcp_setup.sh PROJECT BUCKET [CIDR]}
bucket=${2:?usage: cluster/gcp_setup.sh PROJECT BUCKET [CIDR]}
cidr=${3:-$(curl --fail --silent https://checkip.amazonaws.com)/32}
yaml=$(dirname "$0")/gcp.yaml
region=$(sed -n 's/^  region: //p' "$yaml")
range=10.10.0.0/20 # the nodes' own

cloud() { gcloud --project "$project" --quiet "$@"; }
quietly() { "$@" >/dev/null 2>&1; }

cloud services enable compute.googleapis.com artifactregistry.googleapis.com iam.googleapis.com \
  cloudresourcemanager.googleapis.com >&2
quietly cloud storage buckets describe "gs://$bucket" ||
  cloud storage buckets create "gs://$bucket" --location "$region" --uniform-bucket-level-access \
    --public-access-prevention >&2
quietly cloud artifacts repositories describe dav-ray --location "$region" ||
  cloud artifacts repositories create dav-ray --location "$region" --repository-format docker >&2

quietly cloud compute networks describe dav-ray || cloud compute networks create dav-ray --subnet-mode custom >&2
quietly cloud compute networks subnets describe dav-ray --region "$region" ||
  cloud compute networks subnets create dav-ray --network dav-ray --region "$region" --range "$range" >&2
quietly cloud compute firewall-rules describe dav-ray-inside ||
  cloud compute firewall-rules create dav-ray-inside --network dav-ray --source-ranges "$range" \
    --allow tcp,udp,icmp >&2
quietly cloud compute firewall-rules delete dav-ray-ssh || true # your address may have changed
cloud compute firewall-rules create dav-ray-ssh --network dav-ray --source-ranges "$cidr" --allow tcp:22 >&2

for name in dav-ray-head dav-ray-worker; do
  account=$name@$project.iam.gserviceaccount.com
  quietly cloud iam service-accounts describe "$account" || cloud iam service-accounts create "$name" >&2
  cloud storage buckets add-iam-policy-binding "gs://$bucket" --member "serviceAccount:$account" \
    --role roles/storage.objectUser >&2
  cloud artifacts repositories add-iam-policy-binding dav-ray --location "$region" \
    --member "serviceAccount:$account" --role roles/artifactregistry.reader >&2
done
# the head starts and stops workers, as which they run
cloud projects add-iam-policy-binding "$project" --role roles/compute.instanceAdmin.v1 --condition None \
  --member "serviceAccount:dav-ray-head@$project.iam.gserviceaccount.com" >&2
cloud iam service-accounts add-iam-policy-binding "dav-ray-worker@$project.iam.gserviceaccount.com" \
  --role roles/iam.serviceAccountUser --member "serviceAccount:dav-ray-head@$project.iam.gserviceaccount.com" >&2

sed "s/my-project/$project/g" "$yaml"
echo "gcp_setup.sh: image: $region-docker.pkg.dev/$project/dav-ray/dav-ray; runs: gs://$bucket/runs; SSH from $cidr" >&2
